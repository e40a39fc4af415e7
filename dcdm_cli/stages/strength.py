"""Fine-tuning that chooses its own strength: snapshots on the way, a probe of each point of a small grid, one choice.

Not from the paper. The choice becomes part of the adapter's record: later stages generate with the scales it names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.crew.ranks import Ranks
from dcdm_cli.errors import NumericalError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.gate import Digest, Finite
from dcdm_cli.run.journals import append_rows, kept_rows
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session, with_settings
from dcdm_cli.run.settings import FinetuneConfig, StrengthConfig
from dcdm_cli.stages.adapter import DifficultyOf, TrainingRows, copy_adapter, snapshot_folder, train_adapter
from dcdm_cli.stages.own_draws import learn_from_own_draws
from dcdm_cli.stages.prompts import without_prompts

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.strength import Point, RealFeatures
    from dcdm_cli.stages.adapter import DifficultyOf

REQUESTS = 5  # difficulties asked for at each point, evenly over the real images' own
PROBES = "probes.jsonl"
MEASURED = "hard and right"  # what rows of it hold; older ones lack what the rule asks for
MOST_UNSEEN = 2000  # real images looked at to judge a strength: more would take longer than they tell
HELPS = "more real images of each class, or a base model that knows these classes, would help"
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
    return results | {"own_draws": learn_from_own_draws(with_settings(session, generate=chosen), config, folder, job)}


def snapshot_steps(most: int, config: StrengthConfig) -> tuple[int, ...]:
    """Steps on a log scale up to `most`; those that the settings name instead, as far as they lie below it."""
    if config.checkpoints:
        return tuple(sorted({min(step, most) for step in config.checkpoints}))
    return tuple(sorted({round(step) for step in np.geomspace(max(1, most / 16), most, 4)}))


def grid(steps: Sequence[int], session: Session, plain: bool) -> list[Point]:
    """Every combination of steps, scale and guidance that is to be probed. A scale that a flag fixes is not varied."""
    from dcdm_cli.evaluation.strength import Point

    strength, given, generate = session.config.strength, session.given, session.config.generate
    scales = (generate.lora_scale,) if "generate.lora_scale" in given else strength.lora_scales
    fixed = {"generate.text_guidance", "generate.difficulty_guidance"} & set(given)
    pairs = ((generate.text_guidance, generate.difficulty_guidance),) if fixed else strength.guidance
    if plain:  # without difficulty only the text's scale acts
        pairs = tuple((text, text) for text in sorted({text for text, _ in pairs}))
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
    from dcdm_cli.evaluation.strength import RealFeatures, choose

    strength, clock = session.config.strength, time.monotonic()
    images = split_unseen(read_manifest(session.run.samples), config, strength.keep_back, session.config.seed)
    steps = snapshot_steps(config.steps, strength)
    points = grid(steps, session, config.conditioning == "none")
    each = images_per_point(strength.probe_budget, len(points), len(images.rows.class_names))
    lesson = TrainingRows(images.rows, steps)
    results = train_adapter(session, config, folder, job, difficulty_of, lesson)
    if not Ranks.of_environment().is_main:
        return results
    embed, features = open_features(session, job)
    labels, classes = images.unseen.column("label").astype(np.int64), len(images.rows.class_names)
    real = RealFeatures(embed(images.rows.paths()), embed(images.unseen.paths()), labels, classes)
    table = []
    for number, point in enumerate(points, 1):
        what = f"strength {number} of {len(points)}: {point.told()}, {each} images"
        table.append(_measured(session, folder, point, each, embed, real, job, what))
    choice = choose(points, table, strength.most_copies, strength.least_labels)
    if choice.usable:
        session.console.note(f"strength: {choice.reason}")
    else:
        session.console.warn(f"strength: {choice.reason}; {HELPS}")
    point = _guided_as_pays(session, config, points[choice.index], table[choice.index], each)
    copy_adapter(snapshot_folder(session.run, folder) / f"step-{points[choice.index].steps:08d}", folder)
    return results | {
        "strength": {
            "points": [{**asdict(point), **row} for point, row in zip(points, table, strict=True)],
            "chosen": choice.index,
            "usable": choice.usable,
            "reason": choice.reason,
            "settings": point.settings(),
            "images_per_point": each,
            "unseen": len(images.unseen),
            "features": features,
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


def images_per_point(budget: int, points: int, classes: int) -> int:
    """Raises UsageError when the budget gives a point too few images to say anything."""
    each, needed = budget // points, max(LEAST, classes)
    if each < needed:
        raise UsageError(
            f"strength.probe_budget = {budget} gives {each} images to each of {points} points, and {needed} are needed "
            f"(at least {LEAST}, and one per class)",
            f"raise it: --set strength.probe_budget={needed * points}, or probe fewer points",
        )
    return each


def open_features(session: Session, job: Job) -> tuple[Callable[[Any], np.ndarray], str]:
    """(images: paths or uint8 [N, H, W, 3] -> float32 [N, D], name of the network)."""
    from dcdm_cli.difficulty.checker import DIGITS, open_digits_checker
    from dcdm_cli.difficulty.classifier import logits_of, preprocessing_of
    from dcdm_cli.difficulty.features import open_extractor
    from dcdm_cli.evaluation.features import features_of

    name = session.config.strength.features
    if name == DIGITS:
        stored = open_digits_checker(job.device)
        seen = preprocessing_of(stored.model, stored.config)
        return lambda images: features_of(stored.model, images, seen, job.device), "the packaged digits classifier"
    extractor = open_extractor(name, None, job.device)
    return lambda images: logits_of([extractor.network], images, extractor.preprocessing, job.device)[0], extractor.name


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
    embed: Callable[[Any], np.ndarray],
    real: RealFeatures,
    job: Job,
    what: str,
) -> dict[str, float]:
    """One row of the table, kept beside the checkpoints so that a stopped choice goes on where it was; what: said."""
    from dcdm_cli.evaluation.strength import measure_point
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import adapter_hash

    snapshots = snapshot_folder(session.run, folder)
    adapter = snapshots / f"step-{point.steps:08d}"
    own = with_settings(session, generate=point.settings())
    generate = own.config.generate
    key = hash_json(
        [adapter_hash(adapter), sampler_settings(generate), generate.attempts, each, session.config.seed, MEASURED]
    )
    for row in kept_rows(snapshots / PROBES, _Probe, session.console.warn):
        if row.key == key:
            return row.measured
    session.console.note(f"probing {what}")
    measured = measure_point(_drawn(own, adapter, each, embed, job), real)
    append_rows(snapshots / PROBES, [{"key": key, "measured": measured}])
    return measured


def _drawn(session: Session, adapter: Path, each: int, embed: Callable[[Any], np.ndarray], job: Job) -> Any:
    from dcdm_cli.evaluation.strength import Drawn
    from dcdm_cli.stages.calibrate import fit, probe_points
    from dcdm_cli.stages.probe import open_run_engine, probe

    engine = open_run_engine(session, adapter, job, insist=False)
    targets = probe_points(session, REQUESTS)
    features: list[np.ndarray] = []
    clock = time.monotonic()
    probed = probe(
        without_prompts(session), engine, targets, -(-each // REQUESTS), job, seed=session.config.seed + 700,
        calibrated=False, watch=lambda rows, images, difficulty: features.append(embed(images)),
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


def strength_settings(session: Session) -> Mapping[str, Any]:
    """What a choice of strength depends on besides fine-tuning's own settings."""
    from dcdm_cli.generation.engine import sampler_settings

    config = session.config
    generate = config.generate.model_dump(mode="json", include={"attempts", "tolerance"})
    return {
        "probed": config.strength.model_dump(mode="json"),
        "sampler": {**sampler_settings(config.generate), **generate},
    }
