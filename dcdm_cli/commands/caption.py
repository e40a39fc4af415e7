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
    "dcdm caption --run birds --method llm --llm HuggingFaceTB/SmolLM2-360M-Instruct",
    'dcdm caption --run birds --template "a photo of a {class}, a kind of bird"',
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "caption", help=summary, sections=SECTIONS["caption"], examples=EXAMPLES)
    def caption(session: Session) -> None:
        record = Run.of(session).caption()
        path = session.run.prompts if session.config.caption.method == "llm" else session.run.samples
        session.console.result({"stage": record.stage, "path": str(path), **record.results}, path)
