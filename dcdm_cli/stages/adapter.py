"""Trains an adapter on the run's manifest: what fine-tuning and the experiments' variants share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import UsageError
from dcdm_cli.model.packaged import PACKAGED
from dcdm_cli.run import roles
from dcdm_cli.run.precision import settle_precision
from dcdm_cli.run.progress import Job
from dcdm_cli.run.seals import change_of_files, seal_files
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.reading import cut_texts
from dcdm_cli.workers.ranks import Ranks

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.scorer import Measured
    from dcdm_cli.model.adapter import AdapterInfo, Distilled
    from dcdm_cli.model.base import BaseModel
    from dcdm_cli.model.denoiser import ConditionedUNet
    from dcdm_cli.stages.watching import Sheets
    from dcdm_cli.training.dataset import TrainingSet
    from dcdm_cli.training.loop import EarlierAdapter, Snapshots, Teacher
    from dcdm_cli.training.views import Views

# (views, rows, settings, session, job) -> float32, one per view
DifficultyOf = Callable[["Views", "Manifest", FinetuneConfig, Session, Job], "np.ndarray"]


def snapshot_folder(run: RunFolder, folder: Path) -> Path:
    """Where the snapshots of an adapter folder's fine-tuning lie."""
    return run.checkpoints / folder.name / "snapshots"


@dataclass(frozen=True)
class TrainingRows:
    """rows: what to learn from; None = all training images that can be used. snapshots: steps whose adapter is kept in
    `snapshot_folder` as well. start: an adapter to go on from. name: of the checkpoints; None = the adapter's.
    teacher: who gives the predictions that are learned, and what their one call stands for then."""

    rows: Manifest | None = None
    snapshots: tuple[int, ...] = ()
    start: EarlierAdapter | None = None
    name: str | None = None
    teacher: Teacher | None = None
    distilled: Distilled | None = None


def train_adapter(
    session: Session,
    config: FinetuneConfig,
    folder: Path,
    job: Job,
    difficulty_of: DifficultyOf | None = None,
    lesson: TrainingRows | None = None,
) -> dict[str, Any]:
    """Fine-tunes on the run's manifest, or on a lesson's rows, and writes an adapter folder. Returns losses and counts.

    difficulty_of: what stands for difficulty, one value in [0, 1] per view; None = the run's own scores. The
    checkpoints, in a folder of the adapter's name, stay until the caller has recorded the result; with --force those of
    other settings give way, while its own are gone on with.

    In a group of processes all of them call it, and the main one alone writes.
    """
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.stages.watching import Sheets
    from dcdm_cli.training.dataset import training_rows
    from dcdm_cli.training.loop import Course, finetune, global_batch

    ranks = Ranks.of_environment()
    lesson = lesson or TrainingRows()
    rows = lesson.rows or training_rows(read_manifest(session.run.samples), config.keep_suspects)
    base, config = _base_in_use(session, config, job)
    data = _training_set(session, config, rows, base, job, difficulty_of or own_difficulty)
    info = _facts(session, config, rows, base, lesson)
    sheets = Sheets(session, rows, base, info, config, folder.name) if config.sample_every else None
    shown = _snapshots(snapshot_folder(session.run, folder), lesson, info, sheets, job)
    classes, checkpoints = len(rows.class_names), session.run.checkpoints / (lesson.name or folder.name)
    course = Course(shown, lesson.start, session.force, lesson.teacher)
    trained = finetune(base, data, classes, config, checkpoints, job, course)
    results = {"images": len(data), "losses": trained.losses, "skipped_steps": trained.skipped}
    results |= {"processes": ranks.world, "global_batch": global_batch(config, ranks.world)}
    if ranks.is_main:
        _save(folder, trained.network, info)
    return results


def _base_in_use(session: Session, config: FinetuneConfig, job: Job) -> tuple[BaseModel, FinetuneConfig]:
    """The base model, loaded, and the settings with the run's seed and the settled precision in them."""
    from dcdm_cli.model.base import load_base

    precision = settle_precision(config.precision, job.device, training=True)
    place: dict[str, Any] = {"revision": config.revision, "variant": config.variant, "config": _base_config(config)}
    base = load_base(config.base, **place, dtype=precision, device=job.device)
    for warning in base.warnings:
        session.console.warn(warning)
    if base.variant != config.variant:
        session.console.note(f"base model: {config.base} has {base.variant} weights alone; these are used")
    return base, config.model_copy(update={"seed": config.seed + session.config.seed, "precision": precision})


def _facts(
    session: Session, config: FinetuneConfig, rows: Manifest, base: BaseModel, lesson: TrainingRows
) -> AdapterInfo:
    """What the adapter's config.json will say. Of the encoder is known only when it is saved."""
    from dcdm_cli.model.adapter import AdapterInfo

    return AdapterInfo(
        base=_lasting_name(config.base),
        base_fingerprint=base.fingerprint,
        revision=config.revision,
        class_names=rows.class_names,
        resolution=config.resolution,
        encoder=None,
        training=roles.fingerprint(config),
        variant=base.variant,
        base_config=_base_config(config),
        dataset=_hub_dataset(session.run),
        distilled=lesson.distilled,
    )


def _base_config(config: FinetuneConfig) -> str | None:
    return str(config.base_config.absolute()) if config.base_config else None


def _snapshots(
    folder: Path, lesson: TrainingRows, info: AdapterInfo, sheets: Sheets | None, job: Job
) -> Snapshots | None:
    """When the network is shown on the way: for sheets of samples, and to be kept in `folder` as the lesson asks."""
    from dcdm_cli.training.loop import Snapshots

    drawn = sheets.steps() if sheets else ()

    def keep(step: int, network: ConditionedUNet) -> None:
        if sheets and step in drawn:
            sheets.draw(step, network, job)
        if step in lesson.snapshots:
            # how far this one was trained, not how far training will go
            place = snapshot_of(folder, step)
            _save(place, network, replace(info, training={**info.training, "steps": step}))
            seal_files(place)

    steps = {*lesson.snapshots, *drawn}
    return Snapshots(tuple(sorted(steps)), keep) if steps else None


def refuse_changed_snapshots(run: RunFolder, folder: Path, steps: Sequence[int], job: Job) -> None:
    """Says which snapshots of these steps are not what fine-tuning has left there, and removes them with the
    checkpoints from which training would not come by them: going on makes them again."""
    from dcdm_cli.run.checkpoint import drop_checkpoints

    snapshots, checkpoints = snapshot_folder(run, folder), run.checkpoints / folder.name
    for step in steps:
        place = snapshot_of(snapshots, step)
        # before training has come so far there is none, and no checkpoint of that step either
        if (said := change_of_files(place)) and drop_checkpoints(checkpoints, step):
            job.warn(f"{place} {said}: fine-tuning goes on from before that step, which makes it again")
            shutil.rmtree(place, ignore_errors=True)


def snapshot_of(snapshots: Path, step: int) -> Path:
    return snapshots / f"step-{step:08d}"


def _save(folder: Path, network: ConditionedUNet, info: AdapterInfo) -> None:
    from dcdm_cli.files import atomic_folder
    from dcdm_cli.model.adapter import save_adapter

    encoder = network.encoder
    with atomic_folder(folder) as part:
        save_adapter(part, network.unet, encoder, replace(info, encoder=encoder.config if encoder else None))


def copy_adapter(source: Path, folder: Path) -> None:
    """The files of an adapter as another, without the calibration, which is for sampler settings of its own."""
    from dcdm_cli.files import atomic_folder
    from dcdm_cli.model.adapter import CALIBRATION_FILE

    with atomic_folder(folder) as part:
        for file in source.iterdir():
            if file.name != CALIBRATION_FILE:
                shutil.copy(file, part / file.name)


def _training_set(
    session: Session, config: FinetuneConfig, rows: Manifest, base: BaseModel, job: Job, difficulty_of: DifficultyOf
) -> TrainingSet:
    """config: with the run's seed in it. In a group, images are encoded and views measured by the main process."""
    import torch

    from dcdm_cli.training.dataset import TrainingSet, balanced_epoch, cache_latents, encode_captions
    from dcdm_cli.training.processes import from_main, main_first
    from dcdm_cli.training.views import Views

    ranks, report = Ranks.of_environment(), job.stoppable("training has not begun")
    views = Views(rows.paths(), config.hflip, config.views - 1, config.seed)
    with main_first(ranks, job.device):  # the others find them encoded
        # by which `starts.open_starts` finds the latents again
        ids = rows.column("sample_id").tolist()
        latents = cache_latents(base, views, config.resolution, session.run.cache, report, ids)
    # cut already, unless the caption stage had no tokenizer or was not needed
    captions, _ = cut_texts(rows.column("caption").tolist(), base.tokenizer, "captions", session.console)
    text, caption = encode_captions(base, captions, report)
    label = torch.from_numpy(views.repeat(rows.column("label").astype("int64")))
    measured = from_main(ranks, job.device, lambda: difficulty_of(views, rows, config, session, job))
    difficulty = torch.from_numpy(measured)
    epoch = balanced_epoch(difficulty, config.difficulty_balance)
    return TrainingSet(latents, text, caption.repeat(views.per_image), label, difficulty, epoch)


def _hub_dataset(run: RunFolder) -> str | None:
    """The images' id on the hub, where they are from there."""
    record = run.record("score")
    source = str(record.config.get("source", "")) if record else ""
    return source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else None


def _lasting_name(base: str) -> str:
    """How the adapter's config.json calls its base: a folder by its absolute path, others as they were given."""
    # a packaged base keeps its name: it lies elsewhere on every machine
    return str(Path(base).absolute()) if Path(base).exists() and base not in PACKAGED else base


def own_difficulty(views: Views, rows: Manifest, config: FinetuneConfig, session: Session, job: Job) -> np.ndarray:
    """float32, one per view: the images' own where there are no other views or they do not matter, else measured by
    scoring models that have not seen the image."""
    import numpy as np

    own = rows.column("difficulty").astype(np.float32)
    if views.per_image == 1 or config.conditioning == "none":
        return views.repeat(own)
    return measured_views(views, rows, session, job).difficulty


def measured_views(views: Views, rows: Manifest, session: Session, job: Job) -> Measured:
    """What the scoring models that have not seen an image's original say of each of its views."""

    run = session.run
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
    # these have a model per fold; which one has not seen an image follows from rows, settings and the seed of scoring
    if run.require("score").results["method"] in ("crossfit", "features"):
        done = run.require("score").config
        settings = ScoreConfig.model_validate({**done["score"], "seed": done["score"]["seed"] + done["seed"]})
        unseen = unseen_models(train, settings)
        position = {sample: row for row, sample in enumerate(train.column("sample_id"))}
        only = views.repeat(unseen[[position[sample] for sample in rows.column("sample_id")]])
    return Scorer.load(run.scorer, job.device).measure(
        views, views.repeat(rows.column("label")), only=only, progress=job.stoppable("training has not begun")
    )
