"""Generates images: plan first, then shards; the same call again continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.errors import UsageError
from dcdm_cli.run.session import Context
from dcdm_cli.run.store import ALL_SETS, Outcome, Stage, StageRecord
from dcdm_cli.stages.devices import Spread, settle_spread
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.plan import (
    check_plan,
    describe_model,
    draw_plan,
    plan_layout,
    price_file,
    refuse_planning_flags,
)
from dcdm_cli.stages.probe import make_measure, open_run_crew, open_run_engine

if TYPE_CHECKING:
    from dcdm_cli.generation.coordinator import Generated
    from dcdm_cli.generation.plan_file import AnyPlan


def run_generate(context: Context, plan_file: Path | None = None, *, verify: bool = False) -> StageRecord:
    """Executes a plan file, or the plan that the settings give, unless nothing changed."""
    from dcdm_cli.generation.plan_file import PlanFile

    run, config = context.run, context.config
    if run.images_name == ALL_SETS:
        raise UsageError(f"--name {ALL_SETS} means all sets where they are compared", "choose another name")
    plan = None
    if plan_file is not None:
        refuse_planning_flags(context)
        plan = PlanFile(plan_file)
        plan.verify()
    run.create(after="finetune")
    with run.lock("dcdm generate" + (f" --name {run.images_name}" if run.images_name else "")):
        calibration = run.record("calibrate")
        inputs = {"finetune": run.require("finetune").id, "calibrate": calibration.id if calibration else ""}
        if plan is not None:
            inputs["plan"] = plan.hash
        stage = Stage("generate", {**config.generate.model_dump(mode="json"), "run_seed": config.seed}, inputs)
        force = context.force or verify
        record, done = run.run(
            stage, lambda: _work(context, plan, verify), force=force, intact=lambda: _is_intact(context)
        )
    if not done:
        context.console.note("generate: nothing changed, skipped (--force runs it again)")
    return record


def _work(context: Context, plan: AnyPlan | None, verify: bool) -> Outcome:
    from dcdm_cli.generation.ledger import refuse_other_plan
    from dcdm_cli.generation.targets import parse_target

    config, run = context.config.generate, context.run
    parse_target(config.difficulty)  # a slip of the pen must not wait for the models to load
    if plan is not None:
        check_plan(context, plan)
        if not context.force:
            refuse_other_plan(plan, run.generated)
    spread = settle_spread(context)
    run_it = _with_crew if spread else _in_this_process
    plan, generated, backend, device = run_it(context, plan, spread, verify)
    _drop_old(run.generated)
    results = {
        "images": generated.images,
        "made_now": generated.made,
        "failed": generated.failed,
        "unreachable_targets": plan.unreachable,
        "plan": plan.hash,
        "shards": plan.shards,
        "format": config.format,
        "backend": backend,
        **_difficulty_summary(generated),
        **_prediction(plan),
    }
    return Outcome([run.generated / "samples.parquet"], plan.hash, results, device)


def _in_this_process(
    context: Context, plan: AnyPlan | None, spread: Spread, verify: bool
) -> tuple[AnyPlan, Generated, str, str]:
    from dcdm_cli.generation.bulk import EngineMaker
    from dcdm_cli.generation.coordinator import run_shards

    job = open_job(context)
    engine = open_run_engine(context, context.run.adapter, job)
    plan = plan or draw_plan(context, context.config.generate, engine, describe_model(context))
    _start(context, plan)
    maker = EngineMaker(engine, make_measure(context, job) if context.config.generate.score else None)
    generated = run_shards(plan, maker, plan_layout(context, plan), job, verify=verify)
    return plan, generated, engine.denoiser.name, job.device


def _with_crew(
    context: Context, plan: AnyPlan | None, spread: Spread, verify: bool
) -> tuple[AnyPlan, Generated, str, str]:
    from dcdm_cli.generation.worker_start import open_shard_worker
    from dcdm_cli.generation.workers import run_crew

    job = open_job(context, spread.devices[0])
    with open_run_crew(context, spread, job, open_shard_worker, score=context.config.generate.score) as crew:
        facts, _ = crew.first_hello()
        context.console.note(f"backend: {facts.backend}")
        plan = plan or draw_plan(context, context.config.generate, facts, describe_model(context))
        _start(context, plan)
        if plan.shards < len(spread.devices):
            context.console.warn(
                f"{plan.shards} shards for {len(spread.devices)} workers: some have nothing to do "
                "(--shard-size makes smaller ones)"
            )
        layout = plan_layout(context, plan)
        generated = run_crew(plan, crew, layout, job, deliver=spread.deliver, verify=verify)
    return plan, generated, facts.backend, ",".join(spread.devices)


def _start(context: Context, plan: AnyPlan) -> None:
    _warn_unreachable(context, plan)
    if context.force:
        _set_aside(context.run.generated, plan)


def _warn_unreachable(context: Context, plan: AnyPlan) -> None:
    if plan.unreachable:
        context.console.warn(
            f"{plan.unreachable} of {len(plan)} targets lie outside what this adapter can reach on average; "
            "they get the nearest end (dcdm evaluate shows the range)"
        )


def _difficulty_summary(generated: Generated) -> dict[str, float | None]:
    import numpy as np

    target, measured, predicted, label = generated.columns(
        "target_difficulty", "measured_difficulty", "predicted", "label"
    )
    known = bool(np.isfinite(measured).any())
    return {
        "target_mean": float(target.mean()) if len(target) else None,
        "measured_mean": float(np.nanmean(measured)) if known else None,
        "label_agreement": float((predicted == label).mean()) if known else None,
    }


def _prediction(plan: AnyPlan) -> dict[str, float]:
    """What the plan was priced at, when it was."""
    from dcdm_cli.generation.plan_file import PlanFile

    if not isinstance(plan, PlanFile) or not price_file(plan.path).is_file():
        return {}
    return {"predicted_seconds": json.loads(price_file(plan.path).read_text("utf-8"))["seconds"]}


def _set_aside(folder: Path, plan: AnyPlan) -> None:
    """--force keeps the old images until the new ones are complete. New ones that were begun are gone on with, or
    dropped when by now others are asked for."""
    from dcdm_cli.generation.plan_file import PlanFile

    old, begun = _old(folder), folder / "plan.parquet"
    if not old.exists():
        if folder.exists():
            folder.rename(old)
    elif not begun.is_file() or PlanFile(begun).hash != plan.hash:
        shutil.rmtree(folder, ignore_errors=True)


def _is_intact(context: Context) -> bool:
    """False when of finished images not all are there any more; says what is missing. It is made again, it alone."""
    from dcdm_cli.generation.ledger import Ledger
    from dcdm_cli.generation.plan_file import PlanFile

    file = context.run.generated / "plan.parquet"
    if not file.is_file():
        missing = f"{file} is gone"
    else:
        plan = PlanFile(file)
        missing = Ledger(plan, plan_layout(context, plan)).missing()
    if missing:
        context.console.note(missing)
    return not missing


def _drop_old(folder: Path) -> None:
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
