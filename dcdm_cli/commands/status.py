"""`dcdm status`: which stages are done, stale or running, what they took, and the next command."""

from __future__ import annotations

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session
from dcdm_cli.stages.status import shown_status

EXAMPLES = ("dcdm status", "dcdm status --run birds", "dcdm status --run birds --json | jq -r .next")


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "status", help=summary, examples=EXAMPLES, shared=("run",))
    def status(session: Session) -> None:
        standing = Run.of(session).status()
        session.console.result(standing.document(), session.run.path, shown_status(standing))
