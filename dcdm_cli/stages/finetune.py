"""Fine-tunes LoRA and the difficulty encoder."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from dcdm_cli.crew.ranks import Ranks
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Context
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.signals import asked_to_stop
from dcdm_cli.stages.caption import caption_input
from dcdm_cli.stages.devices import settle_spread, settle_training
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.own_draws import own_name
from dcdm_cli.stages.strength import fine_tune, strength_settings
from dcdm_cli.stages.watching import step_log


def run_finetune(context: Context) -> StageRecord:
    """Fine-tunes unless nothing changed. In a group of processes, the main one: `join_group` is for the others."""
    context.run.create(after="score")
    context = settle_training(context)
    run, config = context.run, context.config.finetune
    with run.lock("dcdm finetune"):
        record, done = run.run(
            finetune_stage(context), lambda: _train(context, config, run.adapter), force=context.force
        )
        _drop_checkpoints(run)  # only now: a kill before the record was written must not cost the training
    if not done:
        context.console.note("finetune: nothing changed, skipped (--force runs it again)")
    return record


def run_group(context: Context, wanted: tuple[str, ...]) -> None:
    """This command once per device, as one group that trains together. Raises what its main process raises."""
    from dcdm_cli.crew.ranks import Group

    scale = context.config.scale.model_copy(update={"devices": wanted, "engine": "local", "address": None})
    config = context.config.model_copy(update={"scale": scale})
    spread = settle_spread(replace(context, resolved=replace(context.resolved, config=config)))
    context.console.note(f"devices: {', '.join(spread.devices)} (one process each)")
    # -P: without it Python would run a typer.py of the folder one stands in
    words = [sys.executable, "-P", "-m", "dcdm_cli", *sys.argv[1:]]
    logs = context.run.cache / "finetune-processes"
    Group(words, spread.devices, logs, context.console.out, spread.threads).run(asked_to_stop)


def join_group(context: Context) -> None:
    """What the processes beside the main one do: train, and leave writing and saying to it."""
    context.console.quiet = True
    context = settle_training(context)
    if context.force or context.run.is_fresh(finetune_stage(context)) is None:
        fine_tune(context, context.config.finetune, context.run.adapter, _job(context))


def finetune_stage(context: Context) -> Stage:
    """Of a context whose precision is settled."""
    run, config = context.run, context.config.finetune
    inputs = {"score": run.require("score").id, **caption_input(run)}
    settings = {**fingerprint(config), "run_seed": context.config.seed}
    processes = Ranks.of_environment().world
    if processes > 1:
        settings["processes"] = processes  # they make the batch larger
    if config.strength == "auto":
        settings |= strength_settings(context)
    return Stage("finetune", settings, inputs, others(config))


def _job(context: Context) -> Job:
    """On the device of this process: the n-th GPU of a group's n-th process."""
    ranks = Ranks.of_environment()
    if ranks.world == 1:
        return open_job(context)
    from dcdm_cli.crew.devices import settle_device

    kind, _ = settle_device("cpu" if os.environ.get("ACCELERATE_USE_CPU") else context.config.device)
    kind = kind.split(":")[0]
    return open_job(context, f"cuda:{ranks.local}" if kind == "cuda" else kind)


def _wanted(devices: str | None, context: Context) -> tuple[str, ...]:
    """`--devices`, or what the settings say for every command."""
    if devices is not None:
        return tuple(part.strip() for part in devices.split(",") if part.strip())
    return context.config.scale.devices


def _train(context: Context, config: FinetuneConfig, folder: Path) -> Outcome:
    from dcdm_cli.model.adapter import adapter_hash
    from dcdm_cli.reports.plots import loss_curve

    with step_log(context, _job(context)) as job:
        results = fine_tune(context, config, folder, job)
    steps, losses = zip(*results["losses"], strict=True) if results["losses"] else ((), ())
    context.run.figures.mkdir(exist_ok=True)
    figure = loss_curve(context.run.figures / "loss.png", steps, losses)
    return Outcome([folder, figure], adapter_hash(folder), results, job.device)


def _drop_checkpoints(run: RunFolder) -> None:
    import shutil

    for name in (run.adapter.name, own_name(run.adapter)):
        shutil.rmtree(run.checkpoints / name, ignore_errors=True)
