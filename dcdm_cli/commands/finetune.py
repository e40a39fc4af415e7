"""`dcdm finetune`: LoRA and difficulty encoder, then calibration of what comes out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdm_cli.commands.caption import caption_input, cut_captions
from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.commands.spread import settle_spread
from dcdm_cli.config import FinetuneConfig
from dcdm_cli.crew.ranks import Ranks
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.job import Job
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.signals import asked_to_stop
from dcdm_cli.store import Outcome, Stage, StageRecord

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.calibration import Calibration
    from dcdm_cli.difficulty.scorer import Measured
    from dcdm_cli.model.base import BaseModel
    from dcdm_cli.training.dataset import TrainingSet
    from dcdm_cli.training.views import Views

    DifficultyOf = Callable[[Views, Manifest, FinetuneConfig, Context, Job], np.ndarray]

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
        record = run_finetune(context)
        calibrated = run_calibrate(context)
        results = record.results | ({"calibration": calibrated.results} if calibrated else {})
        context.console.result({"stage": "finetune", "path": str(context.run.adapter), **results}, context.run.adapter)


def run_finetune(context: Context) -> StageRecord:
    """Fine-tunes unless nothing changed. In a group of processes, the main one: `join_group` is for the others."""
    run, config = context.run, context.config.finetune
    run.create(after="score")
    with run.lock("dcdm finetune"):
        if context.force:
            _drop(run.checkpoints / "adapter")
        record, done = run.run(_stage(context), lambda: _work(context, config, run.adapter), force=context.force)
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
    if context.force or context.run.is_fresh(_stage(context)) is None:
        train_adapter(context, context.config.finetune, context.run.adapter, _job(context))


def _stage(context: Context) -> Stage:
    run, config = context.run, context.config.finetune
    inputs = {"score": run.require("score").id, **caption_input(run)}
    settings = {**config.model_dump(mode="json"), "run_seed": context.config.seed}
    processes = Ranks.of_environment().world
    if processes > 1:
        settings["processes"] = processes  # they make the batch larger
    return Stage("finetune", settings, inputs)


def _job(context: Context) -> Job:
    """On the device of this process: the n-th GPU of a group's n-th process."""
    ranks = Ranks.of_environment()
    if ranks.world == 1:
        return context.job()
    from dcdm_cli.backends.base import settle_device

    kind, _ = settle_device("cpu" if os.environ.get("ACCELERATE_USE_CPU") else context.config.device)
    kind = kind.split(":")[0]
    return context.job(f"cuda:{ranks.local}" if kind == "cuda" else kind)


def _wanted(devices: str | None, context: Context) -> tuple[str, ...]:
    """`--devices`, or what the settings say for every command."""
    if devices is not None:
        return tuple(part.strip() for part in devices.split(",") if part.strip())
    return context.config.scale.devices


def run_calibrate(context: Context) -> StageRecord | None:
    """The closed loop, unless it is switched off, there is no scorer, or the adapter has no difficulty."""
    run, config = context.run, context.config
    plain = config.finetune.conditioning == "none"
    if not config.calibrate.enabled or plain or not run.scorer.exists():
        return None
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import CALIBRATION_FILE

    file = run.adapter / CALIBRATION_FILE
    with run.lock("dcdm finetune (calibration)"):
        settings = {**config.calibrate.model_dump(mode="json"), "sampler": sampler_settings(config.generate)}
        settings["attempts"] = config.generate.attempts  # decides what is reachable
        inputs = {"finetune": run.require("finetune").id, "score": run.require("score").id}
        stage = Stage("calibrate", settings, inputs)
        record, _ = run.run(stage, lambda: _calibrate(context, file), force=context.force)
    low, high = record.results["reachable"]
    context.console.note(f"calibrated: mean difficulty {low:.2f} to {high:.2f} can be reached")
    return record


def training_rows(manifest: Manifest, keep_suspects: bool) -> Manifest:
    """Scored, captioned training images, without likely mislabels. Raises UsageError when too little is left."""
    import numpy as np

    train = manifest.split("train")
    if train.table["caption"].null_count:
        raise NotFoundError("some training images have no caption", "write them: dcdm caption --force")
    keep = np.isfinite(train.column("difficulty"))
    if not keep_suspects:
        keep &= ~train.column("suspect_label")
    chosen = train.select(keep)
    counts = chosen.class_counts()
    if (counts > 0).sum() < 2:
        raise UsageError(
            "difficulty needs at least two classes with images", "add a second class folder and run dcdm score again"
        )
    if (counts == 0).any():
        names = [n for n, c in zip(manifest.class_names, counts, strict=True) if c == 0]
        raise UsageError(
            f"no usable training image in class {names[0]!r} ({len(names)} such classes)",
            "add images or remove the class folder, then run dcdm score again; --keep-suspects keeps doubtful labels",
        )
    return chosen


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
    from dcdm_cli.training.loop import finetune, global_batch

    ranks = Ranks.of_environment()
    rows = training_rows(read_manifest(context.run.samples), config.keep_suspects)
    base = load_base(config.base, revision=config.revision, dtype=config.precision, device=job.device)
    config = config.model_copy(update={"seed": config.seed + context.config.seed})
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
    captions, _ = cut_captions(rows.column("caption").tolist(), base.tokenizer, context.console)
    text, caption = encode_captions(base, captions, report)
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
    from dcdm_cli.config import ScoreConfig
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.difficulty.crossfit import unseen_models
    from dcdm_cli.difficulty.scorer import Scorer

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


def _calibrate(context: Context, file: Path) -> Outcome:
    from dcdm_cli.commands.probing import open_run_engine, probe
    from dcdm_cli.difficulty.calibration import save_calibration
    from dcdm_cli.files import hash_file

    config, job = context.config, context.job()
    engine = open_run_engine(context, context.run.adapter, job, insist=False)  # export comes after fine-tuning
    points = probe_points(context)
    measured = probe(context, engine, points, config.calibrate.images, job, seed=config.seed + 500, calibrated=False)
    calibration = _fit(measured, len(engine.info.class_names), engine.config)
    save_calibration(calibration, file)
    calibration = replace(calibration, attempts=config.generate.attempts)
    results = {"reachable": list(calibration.reachable), "realised": list(calibration.realised)}
    return Outcome([file], hash_file(file), results | {"requested": list(calibration.requested)}, job.device)


def probe_points(context: Context) -> list[float]:
    """Difficulties to probe, and so the only ones that generation will ask for: where the model was shown images.

    Not from the paper. A request outside the difficulties of the real images is extrapolation, and what comes out has
    lost its label more often than its ease.
    """
    import numpy as np

    from dcdm_cli.data.manifest import read_manifest

    config = context.config
    real = training_rows(read_manifest(context.run.samples), config.finetune.keep_suspects).column("difficulty")
    low, high = np.quantile(real, [config.calibrate.tails, 1 - config.calibrate.tails])
    return np.linspace(low, high, config.calibrate.points).round(4).tolist()


def _fit(measured: Any, classes: int, config: Any) -> Calibration:
    from dcdm_cli.difficulty.calibration import fit_calibration
    from dcdm_cli.generation.engine import sampler_settings

    return fit_calibration(
        measured.requested, measured.realised, measured.agrees, measured.label, classes, sampler_settings(config)
    )


def _drop(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
