"""`dcdm export`: the fused network as ONNX graphs and TensorRT engines, compared with PyTorch before it counts."""

from __future__ import annotations

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session

EXAMPLES = (
    "dcdm export --run birds",
    "dcdm export --run birds --target tensorrt --precision fp16 --batch 1,8,32",
    "dcdm export --run birds --guidance distilled",
    "dcdm export --run birds --opset 23 --json | jq .networks",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(
        app,
        "export",
        help=summary,
        sections=SECTIONS["export"],
        keys=("generate.precision", "generate.guidance"),
        examples=EXAMPLES,
    )
    def export(session: Session) -> None:
        from dcdm_cli.reports.table import shown
        from dcdm_cli.reports.tables import export_tables, saved_tables

        record = Run.of(session).export()
        document = {"stage": "export", "path": str(session.run.export), **record.results}
        tables = saved_tables(export_tables(record.results), session.run.tables)
        session.console.result(document, session.run.export, shown(tables))
