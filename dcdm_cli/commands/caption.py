"""`dcdm caption`: one caption per image, in the manifest and on request beside the images."""

from __future__ import annotations

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session

EXAMPLES = (
    "dcdm caption --run birds",
    "dcdm caption --run birds --method model --model Salesforce/blip2-opt-2.7b",
    'dcdm caption --run birds --template "a photo of a {class}, a kind of bird"',
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "caption", help=summary, sections=SECTIONS["caption"], examples=EXAMPLES)
    def caption(session: Session) -> None:
        record = Run.of(session).caption()
        session.console.result({"stage": "caption", **record.results}, session.run.samples)
