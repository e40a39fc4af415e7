"""`dcdm distill`: one network call in place of the guided two or three, then its own calibration."""

from __future__ import annotations

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session

EXAMPLES = (
    "dcdm distill --run birds",
    "dcdm distill --run birds --steps 4000 --set generate.difficulty_guidance=5",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "distill", help=summary, sections=SECTIONS["distill"], examples=EXAMPLES)
    def distill(session: Session) -> None:
        record = Run.of(session).distill()
        place = session.run.with_distilled(True).adapter
        session.console.result({"stage": "distill", "path": str(place), **record.results}, place)
