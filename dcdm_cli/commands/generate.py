"""`dcdm generate`: plan first, then batches; the same command again continues."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.commands.probing import make_measure, open_run_engine, plan_inputs
from dcdm_cli.config import GenerateConfig
from dcdm_cli.errors import ExitCode
from dcdm_cli.store import Outcome, Stage, StageRecord

if TYPE_CHECKING:
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import Plan

EXAMPLES = (
    "dcdm generate --run birds --ratio 0.1",
    "dcdm generate --run birds --difficulty uniform:0.3,0.6 --per-class 200",
    "dcdm generate --run birds --difficulty real --count 5000",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "generate", help=summary, sections=("generate",), examples=EXAMPLES)
    def generate(context: Context) -> None:
        record = run_generate(context)
        context.console.result(
            {"stage": "generate", "path": str(context.run.generated), **record.results}, context.run.generated
        )
        if record.results["failed"]:
            raise typer.Exit(ExitCode.PARTIAL)


def run_generate(context: Context) -> StageRecord:
    run, config = context.run, context.config
    run.create()
    with run.lock("dcdm generate"):
        calibration = run.record("calibrate")
        inputs = {"finetune": run.require("finetune").id, "calibrate": calibration.id if calibration else ""}
        stage = Stage("generate", {**config.generate.model_dump(mode="json"), "run_seed": config.seed}, inputs)
        record, done = run.run(stage, lambda: _work(context), force=context.force)
    if not done:
        context.console.note("generate: nothing changed, skipped (--force runs it again)")
    return record


def draw_plan(context: Context, config: GenerateConfig, engine: Engine) -> Plan:
    """The plan for a generation config: budget, target distribution, captions, seeds."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.generation.budget import Budget, read_class_table, read_counts
    from dcdm_cli.generation.plan import make_plan
    from dcdm_cli.generation.targets import Targets, parse_target

    train = read_manifest(context.run.samples).split("train")
    counts = read_counts(config.counts, train.class_names) if config.counts else None
    budget = Budget(config.per_class, config.count, config.ratio, counts, config.balance)
    single = read_class_table(config.difficulty_file, "difficulty", train.class_names) if config.difficulty_file else {}
    target = Targets(
        parse_target(config.difficulty), {label: parse_target(str(text)) for label, text in single.items()}
    )
    return make_plan(
        plan_inputs(context),
        budget.per_label(train.class_counts()),
        target,
        config.seed + context.config.seed,
        engine.generator,
        shard_size=config.shard_size,
    )


def _work(context: Context) -> Outcome:
    from dcdm_cli.generation.bulk import run_plan
    from dcdm_cli.generation.targets import parse_target

    config, run = context.config.generate, context.run
    parse_target(config.difficulty)  # a slip of the pen must not wait for the models to load
    job = context.job()
    engine = open_run_engine(context, run.adapter, job)
    plan = draw_plan(context, config, engine)
    if plan.unreachable:
        context.console.warn(
            f"{plan.unreachable} of {len(plan)} targets lie outside what this adapter can reach on average; "
            "they get the nearest end (dcdm evaluate shows the range)"
        )
    if context.force:
        _set_aside(run.generated)
    measure = make_measure(context, job) if config.score else None
    generated = run_plan(plan, engine, run.generated, job, measure, format=config.format)
    _drop_old(run.generated)
    results = {
        "images": generated.images,
        "made_now": generated.made,
        "failed": generated.failed,
        "unreachable_targets": plan.unreachable,
        "plan": plan.hash,
        "backend": engine.denoiser.name,
        **_difficulty_summary(generated.manifest),
    }
    return Outcome([run.generated / "samples.parquet"], plan.hash, results, job.device)


def _difficulty_summary(manifest) -> dict[str, float | None]:
    import numpy as np

    measured, target = manifest.column("measured_difficulty"), manifest.column("target_difficulty")
    agrees = manifest.column("predicted") == manifest.column("label")
    if not np.isfinite(measured).any():
        return {"target_mean": float(target.mean()), "measured_mean": None, "label_agreement": None}
    return {
        "target_mean": float(target.mean()),
        "measured_mean": float(np.nanmean(measured)),
        "label_agreement": float(agrees.mean()),
    }


def _set_aside(folder: Path) -> None:
    """--force keeps the old images until the new ones are complete."""
    old = _old(folder)
    if folder.exists() and not old.exists():
        folder.rename(old)


def _drop_old(folder: Path) -> None:
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
