"""`dcdm finetune`: LoRA and difficulty encoder, then calibration of what comes out."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session
from dcdm_cli.stages.finetune import _wanted, join_group, run_group
from dcdm_cli.workers.ranks import Ranks

EXAMPLES = (
    "dcdm finetune --run birds --preset sd15",
    "dcdm finetune --run birds --preset sd15 --devices all",
    "dcdm finetune --run birds --base ./my-sd15 --steps 3000 --batch-size 4 --gradient-accumulation 2",
    "dcdm finetune --run birds --mode replace",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "finetune", help=summary, sections=SECTIONS["finetune"], examples=EXAMPLES)
    def finetune(
        session: Session,
        devices: Annotated[
            str | None,
            typer.Option(help="Train on several: N, all, or names; --batch-size is each one's.", metavar="A,B,…"),
        ] = None,
    ) -> None:
        ranks, wanted = Ranks.of_environment(), _wanted(devices, session)
        if ranks.world == 1 and wanted:  # a process that a launcher has started is in a group already
            run_group(session, wanted)
            return
        if not ranks.is_main:  # one process writes and speaks
            join_group(session)
            return
        from dcdm_cli.stages.report import prompt_lines, strength_lines

        document = {"stage": "finetune", "path": str(session.run.adapter), **Run.of(session).finetune().results}
        told = [
            *strength_lines(session.run, document),
            *prompt_lines(session.run.tables, document.get("calibration") or {}),
        ]
        session.console.result(document, session.run.adapter, told)
