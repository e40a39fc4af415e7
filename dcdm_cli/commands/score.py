"""`dcdm score`: scan the source, score every training image, keep the scorer."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands.options import stage_command
from dcdm_cli.errors import ExitCode
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import StageRecord

EXAMPLES = (
    "dcdm score photos/ --run birds --model resnet50 --steps 5000",
    "dcdm score hf:uoft-cs/cifar10 --image-column img",
    "dcdm score 'shards/train-{00000..00127}.tar' --run birds --class-map classes.json --devices all",
    "dcdm score photos/ --run birds --drop birds/review/review.csv --relabel birds/review/review.csv",
    "dcdm score digits --preset digits",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "score", help=summary, sections=SECTIONS["score"], examples=EXAMPLES)
    def score(
        session: Session,
        source: Annotated[
            str | None,
            typer.Argument(
                help="Class folder, tars, Parquet, hf:owner/name@revision, CSV/JSONL manifest, - or digits."
            ),
        ] = None,
    ) -> None:
        record = Run.of(session).score(source)
        show_score(session, record)
        if record.results["rejected"]:
            raise typer.Exit(ExitCode.PARTIAL)


def show_score(session: Session, record: StageRecord) -> None:
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import methods_table, saved_tables, score_table

    run = session.run
    tried = [table for table in (methods_table(record.results),) if table.rows]
    tables = saved_tables([*tried, score_table(read_manifest(run.samples).split("train"))], run.tables)
    session.console.result({"stage": "score", "path": str(run.samples), **record.results}, run.samples, shown(tables))
