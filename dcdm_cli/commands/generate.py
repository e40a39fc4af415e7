"""`dcdm generate`: plan first, then shards; the same command again continues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdm_cli.api import completion
from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS, run_of_plan
from dcdm_cli.commands.options import finite, stage_command
from dcdm_cli.errors import ExitCode, UsageError
from dcdm_cli.run.session import Session
from dcdm_cli.stages.generate import warn_unreachable
from dcdm_cli.stages.plan import Wishes, price_lines

JOIN = "join"
EXAMPLES = (
    "dcdm generate --run birds --ratio 0.1",
    "dcdm generate --run birds --difficulty uniform:0.3,0.6 --per-class 200",
    "dcdm generate --run birds --difficulty real --count 5000 --format webdataset",
    "dcdm generate --run birds --name hard --difficulty uniform:0.6,0.8 --count 500",
    "dcdm generate --run birds --plan --budget-hours 8 --gpu-hour-price 2.50",
    "dcdm generate --run birds --balance --devices all",
    "dcdm generate --run birds --prompts prompts.csv --prompt-share 0.5",
    "dcdm generate birds/plans/1b2c3d4e5f60.parquet --part 3/16",
    "dcdm generate birds/plans/1b2c3d4e5f60.parquet --part join",
    "dcdm generate --run birds --engine ray --address 10.0.0.1:6379 --format webdataset",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "generate", help=summary, sections=SECTIONS["generate"], examples=EXAMPLES, run_of=run_of_plan)
    def generate(
        session: Session,
        plan_file: Annotated[
            Path | None, typer.Argument(metavar="PLAN", help="A plan that --plan wrote; without it, one is drawn.")
        ] = None,
        name: Annotated[
            str,
            typer.Option(
                help="Name of this set of images, kept in sets/NAME beside the others.",
                metavar="NAME",
                autocompletion=completion.set_names,
            ),
        ] = "",
        plan: Annotated[bool, typer.Option("--plan", help="Write and price the plan, generate nothing.")] = False,
        verify: Annotated[bool, typer.Option("--verify", help="Compare finished shards with their hashes.")] = False,
        part: Annotated[
            str | None,
            typer.Option(
                help="With PLAN: make one part of it without the run's lock; or join what parts have made.",
                metavar="K/N|join",
            ),
        ] = None,
        budget_images: Annotated[int | None, typer.Option(help="The same as --count.", min=1)] = None,
        budget_hours: Annotated[
            float | None, typer.Option(help="With --plan: as many images as this many GPU-hours pay for.", min=0)
        ] = None,
        gpu_hour_price: Annotated[
            float | None, typer.Option(help="With --plan: money for one GPU-hour (CPU-hour without a GPU).", min=0)
        ] = None,
    ) -> None:
        wishes = Wishes(finite("--budget-hours", budget_hours), finite("--gpu-hour-price", gpu_hour_price))
        if budget_images is not None:
            session = session.with_flag("generate", "count", budget_images)
        if plan:
            if plan_file is not None:
                raise UsageError(f"--plan writes a new plan, and {plan_file} is one already", "leave out one of them")
            show_price(session, wishes)
            return
        if wishes != Wishes():
            raise UsageError(
                "--budget-hours and --gpu-hour-price need a measurement, which only --plan makes",
                "dcdm generate --plan ..., then dcdm generate PLAN with the file it names",
            )
        if part and part != JOIN:
            show_part(session, plan_file, part)
            return
        from dcdm_cli.stages.report import generated_lines

        record = Run.of(session).generate(plan_file, verify=verify, join=part == JOIN)
        document = {"stage": "generate", "path": str(session.run.generated), **record.results}
        session.console.result(document, session.run.generated, generated_lines(session.run, record.results))
        if record.results["failed"]:
            raise typer.Exit(ExitCode.PARTIAL)


def show_part(session: Session, plan_file: Path | None, part: str) -> None:
    from dcdm_cli.stages.parts import Part

    if plan_file is None:
        raise UsageError(
            "--part needs the plan that all parts share", "dcdm generate --plan, then dcdm generate PLAN ..."
        )
    wanted = Part.parse(part)
    done = Run.of(session).part(plan_file, wanted.number, wanted.of)
    session.console.result({"stage": "generate", "path": str(session.run.generated), **done}, session.run.generated)
    if done["failed"]:
        raise typer.Exit(ExitCode.PARTIAL)


def show_price(session: Session, wishes: Wishes) -> None:
    plan, cost, file = Run.of(session).plan(budget_hours=wishes.hours, gpu_hour_price=wishes.hour_price)
    warn_unreachable(session, plan)
    if cost.disk_bytes * 1.1 > cost.disk_free_bytes:  # the same to spare as `check_room` asks for when it begins
        session.console.warn(
            f"the images need about {cost.disk_bytes / 1e9:.1f} GB and {cost.disk_free_bytes / 1e9:.1f} GB are free"
        )
    document = {"plan": str(file), "plan_hash": plan.hash, **cost.document()}
    session.console.result(document, file, price_lines(session, cost, file))
