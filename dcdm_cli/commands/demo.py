"""`dcdm demo`: the whole job on embedded digits, offline, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from dcdm_cli.commands.caption import run_caption
from dcdm_cli.commands.evaluate import run_evaluate, show_evaluation
from dcdm_cli.commands.finetune import run_calibrate, run_finetune
from dcdm_cli.commands.generate import run_generate
from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.commands.score import run_score
from dcdm_cli.config import resolve

EXAMPLES = ("dcdm demo", "dcdm demo --full --run demo-full", "dcdm demo --json | jq .downstream.arms")
QUICK: dict[str, Any] = {"evaluate.arms": ["real", "plain", "dcdm"], "evaluate.seeds": 3}
FULL: dict[str, Any] = {"evaluate.arms": ["real", "upsampled", "plain", "easy", "dcdm", "hard"], "evaluate.seeds": 8}


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "demo", help=summary, examples=EXAMPLES)
    def demo(
        context: Context,
        full: Annotated[
            bool, typer.Option("--full", help="All arms and 8 seeds: about 45 minutes on 2 cores.")
        ] = False,
    ) -> None:
        context = _with_demo_settings(context, FULL if full else QUICK)
        for stage in (run_score, run_caption, run_finetune, run_calibrate, run_generate):
            context.console.note(f"dcdm {stage.__name__.removeprefix('run_')}")
            stage(context)
        context.console.note("dcdm evaluate")
        show_evaluation(context, run_evaluate(context))


def _with_demo_settings(context: Context, arms: dict[str, Any]) -> Context:
    """The digits preset with the demo's arms; flags and the run's dcdm.toml still win."""
    flags = {"preset": "digits", **arms, **context.given}
    return replace(context, resolved=resolve(flags=flags, run_file=context.run.config_file), given={"preset": "digits"})
