"""`dcdm doctor`: what this machine and installation can do, on one screen."""

from __future__ import annotations

import typer

from dcdm_cli.commands.options import stage_command
from dcdm_cli.errors import ExitCode
from dcdm_cli.run.session import Session
from dcdm_cli.stages.doctor import any_fault, document, run_doctor

EXAMPLES = ("dcdm doctor", "dcdm doctor --run /data/birds", "dcdm doctor --json | tee doctor.json")


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "doctor", help=summary, examples=EXAMPLES, shared=("run",))
    def doctor(session: Session) -> None:
        from dcdm_cli.reports.standing import findings_grid

        findings = run_doctor(session.run)
        session.console.result(document(findings), session.run.path, [findings_grid(findings)])
        if any_fault(findings):
            raise typer.Exit(ExitCode.CAPABILITY)
