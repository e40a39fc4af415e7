"""`dcdm check`: whether what lies in the run folder is what the stages left there, and still fits together."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session
from dcdm_cli.stages.check import check_code, document, sentence

EXAMPLES = ("dcdm check --run birds", "dcdm check --repair", "dcdm check --verify --json | jq -r '.findings[].text'")
HELP = (
    "Of the run folder, not of the images: what they look like says dcdm evaluate check. Exit code 0 when all is "
    "well, 3 when something is stale, 12 when something is damaged."
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "check", help=f"{summary}\n\n{HELP}", examples=EXAMPLES, shared=("run",))
    def check(
        session: Session,
        repair: Annotated[
            bool, typer.Option("--repair", help="Write again what is cheap to make; remove leftovers.")
        ] = False,
        verify: Annotated[
            bool, typer.Option("--verify", help="Read generated images and exported networks too.")
        ] = False,
    ) -> None:
        from rich.text import Text

        from dcdm_cli.safe_text import show

        findings = Run.of(session).check(repair=repair, verify=verify)
        lines = [Text(show(sentence(finding))) for finding in findings]
        session.console.result(document(findings), session.run.path, lines)
        if code := check_code(findings):
            raise typer.Exit(code)
