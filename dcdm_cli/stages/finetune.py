"""Fine-tunes LoRA and the difficulty encoder."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from dcdm_cli.files import remove
from dcdm_cli.model.base_files import base_files
from dcdm_cli.run.keeping import refuse_replacing
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Session, by_calls
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.caption import caption_by_template, caption_input
from dcdm_cli.stages.devices import settle_placement, settle_training
from dcdm_cli.stages.evaluation_data import warn_of_sources
from dcdm_cli.stages.foretold import foretelling
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.own_draws import own_name
from dcdm_cli.stages.strength import fine_tune, strength_settings
from dcdm_cli.stages.watching import draw_losses, step_log
from dcdm_cli.workers.ranks import Ranks

WHAT = "fine-tuning with other settings"  # as it is called where it would replace an adapter


def run_finetune(session: Session) -> StageRecord:
    """Fine-tunes unless nothing changed. In a group of processes, the main one: `join_group` is for the others."""
    session.run.create(after="score")
    session = settle_training(by_calls(session))
    run, config = session.run, session.config.finetune
    with run.lock("dcdm finetune"):
        stage = finetune_stage(session)
        if not session.force:
            refuse_replacing(run, stage, WHAT)
        record, done = run.run(stage, lambda: _train(session, config, run.adapter), force=session.force)
        _drop_checkpoints(run)  # only now: a kill before the record was written must not cost the training
    if not done:
        warn_of_sources(session)  # what it has learned from is in the adapter, whatever became of the images
        session.console.note("finetune: nothing changed, skipped (--force runs it again)")
    return record


def run_group(session: Session, wanted: tuple[str, ...]) -> None:
    """This command once per device, as one group that trains together. Raises what its main process raises."""
    from dcdm_cli.workers.ranks import Group

    scale = session.config.scale.model_copy(update={"devices": wanted, "engine": "local", "address": None})
    config = session.config.model_copy(update={"scale": scale})
    placement = settle_placement(replace(session, resolved=replace(session.resolved, config=config)))
    session.console.note(f"devices: {', '.join(placement.devices)} (one process each)")
    caption_by_template(session)  # before there are several: all of them read the captions
    # -P: without it Python would run a typer.py of the folder one stands in
    words = [sys.executable, "-P", "-m", "dcdm_cli", *sys.argv[1:]]
    logs = session.run.cache / "finetune-processes"
    Group(words, placement.devices, logs, session.console.out, placement.threads).run()


def join_group(session: Session) -> None:
    """What the processes beside the main one do: train, and leave writing and saying to it."""
    session.console.quiet = True
    session = settle_training(by_calls(session))
    # as the main process decides: else one side would wait for the other
    if session.force or session.run.is_fresh(finetune_stage(session)) is None:
        fine_tune(session, session.config.finetune, session.run.adapter, _job(session))


def finetune_stage(session: Session) -> Stage:
    """Of a session whose precision is settled."""
    run, config = session.run, session.config.finetune
    inputs = {"score": run.require("score").id, **caption_input(run)}
    settings = {**fingerprint(config), "run_seed": session.config.seed}
    processes = Ranks.of_environment().world
    if processes > 1:
        settings["processes"] = processes  # they make the batch larger
    if config.strength == "auto":
        settings |= strength_settings(session)
    scores = config.strength == "auto" or config.own_draws > 0 or config.views > 1 or config.hflip  # other pictures
    reads = (run.samples, *([run.scorer] if scores else []))
    return Stage("finetune", settings, inputs, others(config), reads, base_files(config.base, config.base_config))


def _job(session: Session) -> Job:
    """On the device of this process: the n-th GPU of a group's n-th process."""
    ranks = Ranks.of_environment()
    if ranks.world == 1:
        return open_job(session)
    from dcdm_cli.workers.devices import settle_device

    # set by whoever started the group, accelerate or `workers.ranks`
    kind, _ = settle_device("cpu" if os.environ.get("ACCELERATE_USE_CPU") else session.config.device)
    kind = kind.split(":")[0]
    return open_job(session, f"cuda:{ranks.local}" if kind == "cuda" else kind)


def _wanted(devices: str | None, session: Session) -> tuple[str, ...]:
    """`--devices`, or what the settings say for every command."""
    if devices is not None:
        return tuple(part.strip() for part in devices.split(",") if part.strip())
    return session.config.scale.devices


def _train(session: Session, config: FinetuneConfig, folder: Path) -> Outcome:
    from dcdm_cli.model.adapter import adapter_hash
    from dcdm_cli.reports.strength import strength_curves

    with step_log(session, foretelling(session, _job(session))) as job:
        results = fine_tune(session, config, folder, job)
    drawn = [draw_losses(session.run.figures / "loss.png", results)]
    if chosen := results.get("strength"):
        drawn.append(strength_curves(session.run.figures / "strength.png", chosen))
    return Outcome([folder, *drawn], adapter_hash(folder), results, job.device, listed=[session.run.cache])


def _drop_checkpoints(run: RunFolder) -> None:
    remove(run.checkpoints / name for name in (run.adapter.name, own_name(run.adapter)))
