"""`dcdm demo`: the whole job on embedded digits, offline, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.signals import asked_to_stop
from dcdm_cli.stages.told import evaluation_told

EXAMPLES = ("dcdm demo", "dcdm demo --full --run demo-full", "dcdm demo --json | jq .downstream.arms")
# Few real images: there each one counts. Six seeds are the fewest that can tell a gain from noise, and only where all
# agree; of ten, one or two may not.
QUICK: dict[str, Any] = {
    "generate.check": "digits",  # a hard image whose label only the scorer sees is worth little
    "data.source": "digits:50",
    "generate.ratio": 2.0,
    "evaluate.arms": ["real", "augmented", "dcdm"],
    "evaluate.seeds": 10,
    "evaluate.per_target": 30,
    "evaluate.synthetic_ratio": 2.0,
}
FULL: dict[str, Any] = {
    "evaluate.arms": ["real", "upsampled", "augmented", "plain", "easy", "dcdm", "hard", "augmented + dcdm"],
    "evaluate.seeds": 12,
    "evaluate.per_target": 150,
}


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "demo", help=summary, examples=EXAMPLES, prepare=demo_settings)
    def demo(
        session: Session,
        full: Annotated[bool, typer.Option("--full", help="All arms and 12 seeds: about an hour on 2 cores.")] = False,
    ) -> None:
        run = Run.of(session)
        for stage in (run.score, run.caption, run.finetune, run.export, run.generate):
            name = stage.__name__
            session.console.note(f"dcdm {name}")
            stage()
            # a signal may come when the stage has looked for one for the last time
            Job(stop_signal=asked_to_stop).stop_if_asked(f"{name} is finished")
        session.console.note("dcdm evaluate")
        told = evaluation_told(session, run.evaluate())
        session.console.result(told.document, told.path, told.lines)


def demo_settings(session: Session, *, full: bool) -> Session:
    """The digits preset on a small real set with the quick arms, where nobody has said otherwise; --full is a flag like
    any other."""
    given = {**FULL, **session.given} if full else session.given
    lowest = {"preset": "digits", **QUICK}
    resolved = resolve(flags=given, config_file=session.config_file, run_file=session.run.config_file, lowest=lowest)
    # QUICK too, so that dcdm.toml says what the demo was made with
    return replace(session, resolved=resolved, given={**QUICK, **given})
