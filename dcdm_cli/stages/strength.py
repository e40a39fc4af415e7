"""Fine-tuning that chooses its own strength: snapshots on the way, a probe of each point of a small grid, one choice.

Not from the paper. The choice becomes part of the adapter's record: later stages generate with the scales it names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.arrays import evenly
from dcdm_cli.errors import NumericalError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.gate import Digest, Finite
from dcdm_cli.run.journals import append_rows, kept_rows
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session, with_settings
from dcdm_cli.run.settings import FinetuneConfig, StrengthConfig
from dcdm_cli.run.standing import run_words
from dcdm_cli.stages.adapter import (
    DifficultyOf,
    TrainingRows,
    copy_adapter,
    refuse_changed_snapshots,
    snapshot_folder,
    snapshot_of,
    train_adapter,
)
from dcdm_cli.stages.devices import run_features
from dcdm_cli.stages.networks import check_judged_by
from dcdm_cli.stages.own_draws import learn_from_own_draws
from dcdm_cli.stages.prompts import without_prompts
from dcdm_cli.workers.ranks import Ranks

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.features import Space
    from dcdm_cli.evaluation.strength import Point, RealFeatures

REQUESTS = 5  # difficulties asked for at each point, evenly over the real images' own
PROBES = "probes.jsonl"
MEASURED = "hard and right, over all classes"  # what rows of it hold; older ones lack what the rule asks for
MOST_UNSEEN = 2000  # real images looked at to judge a strength: more would take longer than they tell
MOST_LEARNED = 100_000  # training images that copies are looked for among: their features are held at once
HELPS = "more real images of each class, or a base model that knows these classes, would help"
SCALES = ("lora_scale", "text_guidance", "difficulty_guidance")  # of generation, that a point has
LEAST = 20  # images per point, below which shares say nothing


def fine_tune(
    session: Session, config: FinetuneConfig, folder: Path, job: Job, difficulty_of: DifficultyOf | None = None
) -> dict[str, Any]:
    """`train_adapter` at the strength that `config.strength` asks for, then the encoder's lesson from the generator's
    own draws, if any are asked for.

    Its results get `strength` where it was chosen: the table of points, the chosen one, why, and the settings that
    generation takes from it.
    """
    if config.strength == "auto":
        results = _chosen(session, config, folder, job, difficulty_of)
    else:
        steps = {} if config.strength is None else {"steps": int(config.strength)}
        results = train_adapter(session, config.model_copy(update=steps), folder, job, difficulty_of)
    if not config.own_draws or config.conditioning == "none":
        return results
    chosen = results.get("strength", {}).get("settings", {})
    # with the scales just chosen: no record has them yet
    return results | {"own_draws": learn_from_own_draws(with_settings(session, generate=chosen), config, folder, job)}


def snapshot_steps(most: int, config: StrengthConfig) -> tuple[int, ...]:
    """Steps on a log scale up to `most`; those that the settings name instead, as far as they lie below it."""
    if config.checkpoints:
        return tuple(sorted({min(step, most) for step in config.checkpoints}))
    return tuple(sorted({round(step) for step in np.geomspace(max(1, most / 16), most, 4)}))


def grid(session: Session, config: FinetuneConfig) -> list[Point]:
    """Every combination of steps, scale and guidance that is to be probed. A scale that a flag fixes is not varied."""
    from dcdm_cli.evaluation.strength import Point

    strength, given, generate = session.config.strength, session.given, session.config.generate
    scales = (generate.lora_scale,) if "generate.lora_scale" in given else strength.lora_scales
    fixed = _fixing("text_guidance") & set(given) or generate.guidance_span
    pairs = ((generate.text_guidance, generate.difficulty_guidance),) if fixed else strength.guidance
    if config.conditioning == "none":  # without difficulty only the text's scale acts
        pairs = tuple((text, text) for text in sorted({text for text, _ in pairs}))
    steps = snapshot_steps(config.steps, strength)
    return [Point(step, scale, *pair) for step in steps for scale in scales for pair in pairs]


@dataclass(frozen=True)
class _Images:
    """rows: what the adapter learns from; unseen: real images that it does not."""

    rows: Manifest
    unseen: Manifest


def split_unseen(manifest: Manifest, config: FinetuneConfig, fraction: float, seed: int) -> _Images:
    """The judge split is unseen, `MOST_UNSEEN` of it at most; without one, `fraction` of the training images of each
    class is kept back. Never the test split: what is chosen on it would be flattered by it."""
    from dcdm_cli.training.dataset import training_rows

    rows, judged = training_rows(manifest, config.keep_suspects), manifest.split("judge")
    if len(judged):
        share = min(1.0, MOST_UNSEEN / len(judged))
        return _Images(rows, judged.select(_some_of_each(judged, share, seed)))
    kept = _some_of_each(rows, fraction, seed)
    return _Images(rows.select(~kept), rows.select(kept))


def unseen_at_most(manifest: Manifest, fraction: float, seed: int) -> int:
    """How many unseen images `split_unseen` will give; before images are scored, where some may still drop out."""
    if judged := len(manifest.split("judge")):
        return min(judged, MOST_UNSEEN)
    return int(_some_of_each(manifest.split("train"), fraction, seed).sum())


def _some_of_each(rows: Manifest, share: float, seed: int) -> np.ndarray:
    """bool [N]: this share of each class."""
    rng, labels = np.random.default_rng((seed, 17)), rows.column("label")
    chosen = np.zeros(len(rows), bool)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        chosen[rng.permutation(mine)[: int(share * len(mine))]] = True
    return chosen


def _chosen(
    session: Session, config: FinetuneConfig, folder: Path, job: Job, difficulty_of: DifficultyOf | None
) -> dict[str, Any]:
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.evaluation.strength import RealFeatures, check_unseen, choose

    check_judged_by(session)
    strength, clock = session.config.strength, time.monotonic()
    images = split_unseen(read_manifest(session.run.samples), config, strength.keep_back, session.config.seed)
    # before fine-tuning, not after it
    check_unseen(len(images.unseen), run_words(session.run))
    points, classes = grid(session, config), len(images.rows.class_names)
    each = images_per_point(strength.probe_budget, len(points))
    if said := sampled_classes(each, len(points), classes):
        session.console.note(f"strength: {said}")
    lesson = TrainingRows(images.rows, snapshot_steps(config.steps, strength))
    # the others of a group wait, while training begins, until the main process has come there too
    if Ranks.of_environment().is_main:
        refuse_changed_snapshots(session.run, folder, lesson.snapshots, job)
    results = train_adapter(session, config, folder, job, difficulty_of, lesson)
    # training is over, and the group with it: the main process probes and writes alone
    if not Ranks.of_environment().is_main:
        return results
    space, labels = open_space(session, job), images.unseen.column("label").astype(np.int64)
    learned = images.rows.select(evenly(len(images.rows), MOST_LEARNED))
    real = RealFeatures(space.of(learned), space.of(images.unseen), labels, classes)
    table = []
    for number, point in enumerate(points, 1):
        what = f"strength {number} of {len(points)}: {point.told()}, {each} images"
        table.append(_measured(session, folder, point, each, space, real, job, what))
    choice = choose(points, table, strength.most_copies, strength.least_labels)
    if choice.usable:
        session.console.note(f"strength: {choice.reason}")
    else:
        session.console.warn(f"strength: {choice.reason}; {HELPS}")
    point = _guided_as_pays(session, config, points[choice.index], table[choice.index], each)
    # over the last step's, which training has left there
    copy_adapter(snapshot_of(snapshot_folder(session.run, folder), points[choice.index].steps), folder)
    return results | {
        "strength": {
            "points": [{**asdict(point), **row} for point, row in zip(points, table, strict=True)],
            "chosen": choice.index,
            "usable": choice.usable,
            "reason": choice.reason,
            "settings": point.settings(),
            "images_per_point": each,
            "unseen": len(images.unseen),
            "features": space.name,
            "seconds": round(time.monotonic() - clock, 2),
        }
    }


def _guided_as_pays(
    session: Session, config: FinetuneConfig, point: Point, measured: dict[str, float], images: int
) -> Point:
    """The chosen point, guided by difficulty only where that steers it. What a flag says stays, and so does guidance
    that the encoder is still to learn to follow from its own draws."""
    from dcdm_cli.evaluation.strength import without_idle_guidance

    if config.own_draws or "generate.difficulty_guidance" in session.given:
        return point
    pays = without_idle_guidance(point, measured, images)
    if pays != point:
        session.console.note(
            f"difficulty hardly follows the request here (rank correlation {measured['correlation']:.2f}, {images} "
            f"images): one guidance scale for both, {pays.text_guidance:g}, and a network call less; images get the "
            "difficulty asked for by being drawn again (--attempts), and --own-draws teaches control"
        )
    return pays


def images_per_point(budget: int, points: int) -> int:
    """Raises UsageError when the budget gives a point too few images to say anything."""
    each = budget // points
    if each < LEAST:
        raise UsageError(
            f"strength.probe_budget = {budget} gives {each} images to each of {points} points, and {LEAST} are needed",
            f"raise it: --set strength.probe_budget={LEAST * points}, or probe fewer points",
        )
    return each


def drawn_per_point(each: int) -> int:
    """As many at each of `REQUESTS` difficulties, so a few more than `each` where that does not divide it."""
    return REQUESTS * -(-each // REQUESTS)


def sampled_classes(each: int, points: int, classes: int) -> str:
    """What is to be said where a point has fewer images than there are classes; "" where it has one of each."""
    if (drawn := drawn_per_point(each)) >= classes:
        return ""
    return (
        f"{drawn} images per point are fewer than the {classes} classes: every point is probed with the same {drawn} "
        f"classes, drawn from the seed (one image of each class: --set strength.probe_budget={classes * points})"
    )


def open_space(session: Session, job: Job) -> Space:
    """What strengths are judged in. Real images that were looked at before are not looked at again."""
    from dcdm_cli.difficulty.checker import DIGITS, open_digits_checker
    from dcdm_cli.difficulty.classifier import preprocessing_of
    from dcdm_cli.evaluation.features import frozen_space, model_space

    name = session.config.strength.features
    if name == DIGITS:
        stored = open_digits_checker(job.device)
        seen = preprocessing_of(stored.model, stored.config)
        return model_space("the packaged digits classifier", stored.model, seen, job.device)
    return frozen_space(name, run_features(session, job), job)


@dataclass(frozen=True)
class _Probe:
    """A row of PROBES. key: hash of what was probed; measured: as `measure_point` gives it."""

    key: Digest
    measured: dict[str, Finite]


def _measured(
    session: Session,
    folder: Path,
    point: Point,
    each: int,
    space: Space,
    real: RealFeatures,
    job: Job,
    what: str,
) -> dict[str, float]:
    """One row of the table, kept beside the checkpoints so that a stopped choice goes on where it was; what: said."""
    from dcdm_cli.evaluation.strength import measure_point
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import adapter_hash

    snapshots = snapshot_folder(session.run, folder)
    adapter = snapshot_of(snapshots, point.steps)
    own = with_settings(session, generate=point.settings())
    generate = own.config.generate
    # attempts: first draws are probed, but what is reachable counts how many there will be
    key = hash_json(
        [adapter_hash(adapter), sampler_settings(generate), generate.attempts, each, session.config.seed, MEASURED]
    )
    for row in kept_rows(snapshots / PROBES, _Probe, session.console.warn):
        if row.key == key:
            return row.measured
    session.console.note(f"probing {what}")
    measured = measure_point(_drawn(own, adapter, each, space, job), real)
    append_rows(snapshots / PROBES, [{"key": key, "measured": measured}])
    return measured


def _drawn(session: Session, adapter: Path, each: int, space: Space, job: Job) -> Any:
    from dcdm_cli.evaluation.strength import Drawn
    from dcdm_cli.generation.plan import grid_plan
    from dcdm_cli.stages.calibrate import fit, probe_points
    from dcdm_cli.stages.probe import first_draws, open_run_engine, plan_inputs, probe_rows

    engine = open_run_engine(session, adapter, job, insist=False)  # a snapshot has no export
    targets, inputs = probe_points(session, REQUESTS), plan_inputs(without_prompts(session), calibrated=False)
    per_target, seed = drawn_per_point(each) // REQUESTS, session.config.seed + 700
    # all_classes: with more classes than images a point shows as many of them as it can, the same at every point
    plan = grid_plan(inputs, targets, per_target, seed, engine.generator, all_classes=True)
    features: list[np.ndarray] = []
    clock = time.monotonic()
    probed = probe_rows(
        without_prompts(session), first_draws(engine), plan.rows(), job, check=False,
        watch=lambda rows, images, difficulty: features.append(space.seen(images)),
    )  # fmt: skip
    seconds = time.monotonic() - clock
    try:
        calibration = replace(fit(probed, len(engine.info.class_names), engine.config), attempts=engine.config.attempts)
        reachable, error = calibration.reachable, calibration.mean_miss()
    except NumericalError:  # difficulty does not rise with the request: a fact of this point, not a failure
        low, high = np.quantile(probed.realised, [0.1, 0.9])
        reachable, error = (float(low), float(high)), 1.0
    return Drawn(
        np.concatenate(features),
        probed.label,
        probed.requested,
        probed.realised,
        probed.agrees,
        reachable,
        error,
        seconds,
    )


def _fixing(scale: str) -> set[str]:
    """The settings of which a flag fixes this scale: those of guidance go together."""
    names = (scale,) if scale == "lora_scale" else ("text_guidance", "difficulty_guidance")
    return {f"generate.{name}" for name in names}


def strength_settings(session: Session) -> Mapping[str, Any]:
    """What a choice of strength depends on besides fine-tuning's own settings. The scales are of the points, unless a
    flag fixes one; records from before that was so have those that no point used, and stay as they are."""
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.run.roles import RESULT, UNCALIBRATED, fingerprint

    config, record = session.config, session.run.record("finetune")
    draws = fingerprint(config.generate, RESULT, UNCALIBRATED)
    sampler = sampler_settings(config.generate) | {name: draws[name] for name in ("attempts", "tolerance")}
    before = record.section("sampler") if record and "sampler" in record.config else {}
    fixed = {name: sampler[name] for name in SCALES if _fixing(name) & {*session.given}}
    idle = {name: before[name] for name in SCALES if name in before}
    rest = {name: value for name, value in sampler.items() if name not in SCALES}
    probed = {"probed": config.strength.model_dump(mode="json"), "sampler": rest | idle}
    return probed | ({"fixed": fixed} if fixed else {})
