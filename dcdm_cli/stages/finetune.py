"""Fine-tunes LoRA and the difficulty encoder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.crew.ranks import Ranks
from dcdm_cli.errors import UsageError
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.run.precision import settle_precision
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Context
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.signals import asked_to_stop
from dcdm_cli.stages.devices import settle_spread, settle_training
from dcdm_cli.stages.jobs import open_job

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.scorer import Measured
    from dcdm_cli.model.base import BaseModel
    from dcdm_cli.training.dataset import TrainingSet
    from dcdm_cli.training.views import Views

    DifficultyOf = Callable[[Views, Manifest, FinetuneConfig, Context, Job], np.ndarray]


def run_finetune(context: Context) -> StageRecord:
    """Fine-tunes unless nothing changed. In a group of processes, the main one: `join_group` is for the others."""
    context.run.create(after="score")
    context = settle_training(context)
    run, config = context.run, context.config.finetune
    with run.lock("dcdm finetune"):
        if context.force:
            _drop(run.checkpoints / "adapter")
        record, done = run.run(
            finetune_stage(context), lambda: _work(context, config, run.adapter), force=context.force
        )
        _drop(run.checkpoints / "adapter")  # only now: a kill before the record was written must not cost the training
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
    words = [sys.executable, "-m", "dcdm_cli", *sys.argv[1:]]
    logs = context.run.cache / "finetune-processes"
    Group(words, spread.devices, logs, context.console.out, spread.threads).run(asked_to_stop)


def join_group(context: Context) -> None:
    """What the processes beside the main one do: train, and leave writing and saying to it."""
    context.console.quiet = True
    context = settle_training(context)
    if context.force or context.run.is_fresh(finetune_stage(context)) is None:
        train_adapter(context, context.config.finetune, context.run.adapter, _job(context))


def finetune_stage(context: Context) -> Stage:
    """Of a context whose precision is settled."""
    run, config = context.run, context.config.finetune
    inputs = {"score": run.require("score").id, "caption": run.require("caption").id}
    settings = {**fingerprint(config), "run_seed": context.config.seed}
    processes = Ranks.of_environment().world
    if processes > 1:
        settings["processes"] = processes  # they make the batch larger
    return Stage("finetune", settings, inputs, others(config))


def _job(context: Context) -> Job:
    """On the device of this process: the n-th GPU of a group's n-th process."""
    ranks = Ranks.of_environment()
    if ranks.world == 1:
        return open_job(context)
    from dcdm_cli.backends.base import settle_device

    kind, _ = settle_device("cpu" if os.environ.get("ACCELERATE_USE_CPU") else context.config.device)
    kind = kind.split(":")[0]
    return open_job(context, f"cuda:{ranks.local}" if kind == "cuda" else kind)


def _wanted(devices: str | None, context: Context) -> tuple[str, ...]:
    """`--devices`, or what the settings say for every command."""
    if devices is not None:
        return tuple(part.strip() for part in devices.split(",") if part.strip())
    return context.config.scale.devices


def train_adapter(
    context: Context, config: FinetuneConfig, folder: Path, job: Job, difficulty_of: DifficultyOf | None = None
) -> dict[str, Any]:
    """Fine-tunes on the run's manifest and writes an adapter folder. Returns losses and counts.

    difficulty_of: what stands for difficulty, one value in [0, 1] per view; None = the run's own scores. The
    checkpoints, in a folder of the adapter's name, stay until the caller has recorded the result.

    In a group of processes all of them call it, and the main one alone writes.
    """
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.files import atomic_folder
    from dcdm_cli.model.adapter import AdapterInfo, save_adapter
    from dcdm_cli.model.base import load_base
    from dcdm_cli.training.dataset import training_rows
    from dcdm_cli.training.loop import finetune, global_batch

    ranks = Ranks.of_environment()
    rows = training_rows(read_manifest(context.run.samples), config.keep_suspects)
    precision = settle_precision(config.precision, job.device, training=True)
    base = load_base(config.base, revision=config.revision, dtype=precision, device=job.device)
    config = config.model_copy(update={"seed": config.seed + context.config.seed, "precision": precision})
    measure = difficulty_of or own_difficulty
    data, fingerprint = _training_set(context, config, rows, base, job, measure), base.fingerprint
    trained = finetune(base, data, len(rows.class_names), config, context.run.checkpoints / folder.name, job)
    results = {"images": len(data), "losses": trained.losses, "skipped_steps": trained.skipped}
    results |= {"processes": ranks.world, "global_batch": global_batch(config, ranks.world)}
    if not ranks.is_main:
        return results
    encoder = trained.network.encoder
    info = AdapterInfo(
        base=_lasting_name(config.base),
        base_fingerprint=fingerprint,
        revision=config.revision,
        class_names=rows.class_names,
        resolution=config.resolution,
        encoder=encoder.config if encoder else None,
        training=config.model_dump(mode="json"),
    )
    with atomic_folder(folder) as part:
        save_adapter(part, trained.network.unet, encoder, info)
    return results


def _training_set(
    context: Context, config: FinetuneConfig, rows: Manifest, base: BaseModel, job: Job, difficulty_of: DifficultyOf
) -> TrainingSet:
    """config: with the run's seed in it. In a group, images are encoded and views measured by the main process."""
    import torch

    from dcdm_cli.training.dataset import TrainingSet, balanced_epoch, cache_latents, encode_captions
    from dcdm_cli.training.processes import from_main, main_first
    from dcdm_cli.training.views import Views

    ranks, report = Ranks.of_environment(), job.stoppable("training has not begun")
    views = Views(rows.paths(), config.hflip, config.views - 1, config.seed)
    with main_first(ranks, job.device):  # the others find them encoded
        latents = cache_latents(base, views, config.resolution, context.run.cache, report)
    text, caption = encode_captions(base, rows.column("caption").tolist(), report)
    label = torch.from_numpy(views.repeat(rows.column("label").astype("int64")))
    measured = from_main(ranks, job.device, lambda: difficulty_of(views, rows, config, context, job))
    difficulty = torch.from_numpy(measured)
    epoch = balanced_epoch(difficulty, config.difficulty_balance)
    return TrainingSet(latents, text, caption.repeat(views.per_image), label, difficulty, epoch)


def _lasting_name(base: str) -> str:
    """How the adapter's config.json calls its base: a folder by its absolute path, others as they were given."""
    return str(Path(base).absolute()) if Path(base).is_dir() and base != TINY_NAME else base


def own_difficulty(views: Views, rows: Manifest, config: FinetuneConfig, context: Context, job: Job) -> np.ndarray:
    """float32, one per view: the images' own where there are no other views or they do not matter, else measured by
    scoring models that have not seen the image."""
    import numpy as np

    own = rows.column("difficulty").astype(np.float32)
    if views.per_image == 1 or config.conditioning == "none":
        return views.repeat(own)
    return measured_views(views, rows, context, job).difficulty


def measured_views(views: Views, rows: Manifest, context: Context, job: Job) -> Measured:
    """What the scoring models that have not seen an image's original say of each of its views."""

    run = context.run
    if not run.scorer.exists():
        raise UsageError(
            "other views of an image have scores of their own, and there is no scorer at "
            f"{run.scorer} (scores from a column leave none)",
            "use --views 1 --no-hflip, or score with a classifier: dcdm score --method crossfit --force",
            file=run.scorer,
        )
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.difficulty.crossfit import unseen_models
    from dcdm_cli.difficulty.scorer import Scorer
    from dcdm_cli.run.settings import ScoreConfig

    train = read_manifest(run.samples).split("train")
    only = None
    if run.require("score").results["method"] == "crossfit":
        done = run.require("score").config
        settings = ScoreConfig.model_validate({**done["score"], "seed": done["score"]["seed"] + done["seed"]})
        unseen = unseen_models(train, settings)
        position = {sample: row for row, sample in enumerate(train.column("sample_id"))}
        only = views.repeat(unseen[[position[sample] for sample in rows.column("sample_id")]])
    return Scorer.load(run.scorer, job.device).measure(
        views, views.repeat(rows.column("label")), only=only, progress=job.stoppable("training has not begun")
    )


def _work(context: Context, config: FinetuneConfig, folder: Path) -> Outcome:
    from dcdm_cli.model.adapter import adapter_hash
    from dcdm_cli.reports.plots import loss_curve

    job = _job(context)
    results = train_adapter(context, config, folder, job)
    steps, losses = zip(*results["losses"], strict=True) if results["losses"] else ((), ())
    context.run.figures.mkdir(exist_ok=True)
    figure = loss_curve(context.run.figures / "loss.png", steps, losses)
    return Outcome([folder, figure], adapter_hash(folder), results, job.device)


def _drop(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
