"""`dcdm finetune`: LoRA and difficulty encoder, then calibration of what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dcdm_cli.commands.options import stage_command
from dcdm_cli.crew.ranks import Ranks
from dcdm_cli.run.session import Context, with_chosen_strength
from dcdm_cli.stages.calibrate import run_calibrate
from dcdm_cli.stages.finetune import _wanted, join_group, run_finetune, run_group

if TYPE_CHECKING:
    pass


EXAMPLES = (
    "dcdm finetune --run birds --preset sd15",
    "dcdm finetune --run birds --preset sd15 --devices all",
    "dcdm finetune --run birds --base ./my-sd15 --steps 3000 --batch-size 4 --gradient-accumulation 2",
    "dcdm finetune --run birds --mode replace",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "finetune", help=summary, sections=("finetune",), examples=EXAMPLES)
    def finetune(
        context: Context,
        devices: Annotated[
            str | None,
            typer.Option(help="Train on several: N, all, or names; --batch-size is each one's.", metavar="A,B,…"),
        ] = None,
    ) -> None:
        ranks, wanted = Ranks.of_environment(), _wanted(devices, context)
        if ranks.world == 1 and wanted:
            run_group(context, wanted)
            return
        if not ranks.is_main:
            join_group(context)
            return
        context.run.create(after="score")
        with context.run.lock("dcdm finetune"):  # until calibration has ended: nobody may change the adapter before
            record = run_finetune(context)
            calibrated = run_calibrate(with_chosen_strength(context))
        results = record.results | ({"calibration": calibrated.results} if calibrated else {})
        context.console.result({"stage": "finetune", "path": str(context.run.adapter), **results}, context.run.adapter)
