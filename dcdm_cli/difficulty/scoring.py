"""The scoring stage: which classifiers score the training images, and the columns and numbers that come of it.

Small sets are scored in memory. Large ones, and those that a worker pool scores, go through `stream` chunk by chunk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.automatic import Method, best_of, training_seconds
from dcdm_cli.difficulty.classifier import OnTrunk, Preprocessing, preprocessing_of
from dcdm_cli.difficulty.crossfit import CrossFit, crossfit, fit_folds, rounds_of
from dcdm_cli.difficulty.feature_cache import FeatureCache, FeatureTable
from dcdm_cli.difficulty.feature_folds import crossfit_features
from dcdm_cli.difficulty.features import Extractor, open_extractor
from dcdm_cli.difficulty.own_classifier import OwnClassifier, load_own_classifier, score_with
from dcdm_cli.difficulty.own_files import classifier_file
from dcdm_cli.difficulty.packaged import PACKAGED
from dcdm_cli.difficulty.scorer import Scorer, save_feature_scorer, save_own_scorer, save_scorer
from dcdm_cli.difficulty.scores import accuracy_of
from dcdm_cli.difficulty.stream import (
    ChunkScorer,
    ScoreSet,
    open_chunk_scorer,
    sample_temperature,
    score_in_chunks,
    suspects,
)
from dcdm_cli.errors import NumericalError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import FeaturesConfig, ScoreConfig
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.messages import OpenWorker

MOST_NOT_FINITE = 0.01  # share of the images without a finite answer, above which the scorer is broken
STREAM_ABOVE = 20_000  # images; below, all logits fit and nothing is gained by chunks
FEWEST_PIXELS = 16  # of the shorter side, for features to mean anything
FINE_TUNING = {"pretrained": True, "model_args": {}, "steps": 200, "lr": 3e-4}  # beside the settings of training
FEATURES, SCRATCH, FINE_TUNED = "features", "trained from scratch", "fine-tuned"


@dataclass(frozen=True)
class Scoring:
    """spool: folder that a stopped run goes on from. class_map: names in output order, for a classifier that does not
    say. pool: opens workers for large sets, None = this process. threads: CPU threads of a worker. cache: features that
    are kept longer than the spool, None = in it."""

    spool: Path
    class_map: Sequence[str] | None = None
    pool: Callable[[OpenWorker], AbstractContextManager[WorkerPool]] | None = None
    threads: int | None = None
    cache: FeatureCache | None = None

    @property
    def features(self) -> FeatureCache:
        return self.cache or FeatureCache(self.spool / "features", self.pool, self.threads)

    @property
    def scorer(self) -> Path:
        """Where workers find the classifiers."""
        return self.spool / "scorer"


@dataclass(frozen=True)
class Scored:
    """columns: the manifest's score columns, one value per image. results: what to report.

    save_scorer: writes what measures generated images into a folder, or removes what was there. used: the settings
    that the scores come from; with `auto`, those of the method that was kept.
    """

    columns: dict[str, np.ndarray]
    results: dict[str, Any]
    save_scorer: Callable[[Path], None]
    used: ScoreConfig | None = None


def score_images(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    """Scores the training images. Raises UsageError for settings that contradict each other or the images,
    NumericalError for a scorer whose answers are not finite, InterruptedRunError when asked to stop; the same call with
    the same spool goes on."""
    method = chosen_method(config)
    # a column leaves no scorer, and an earlier one would measure generated images by another difficulty
    if method == "column":
        return Scored({}, {"method": method}, lambda folder: shutil.rmtree(folder, ignore_errors=True))
    scorers = {"auto": _by_the_best, "features": _by_features, "crossfit": _by_trained, "classifier": _by_own}
    scored = scorers[method](train, config.model_copy(update={"method": method}), place, job)
    lost = _check_answers(scored.columns["predicted"], _labels(train), config)
    results = {"method": method, **scored.results, "not_finite": lost}
    return replace(scored, results=results, used=scored.used or config)


def _streamed(train: Manifest, place: Scoring) -> bool:
    return len(train) > STREAM_ABOVE or place.pool is not None


def _check_answers(predicted: np.ndarray, labels: np.ndarray, config: ScoreConfig) -> int:
    """How many images got no finite answer. Raises NumericalError that names the classifier when they are too many."""
    lost, asked = int(((predicted < 0) & (labels >= 0)).sum()), int((labels >= 0).sum())
    if lost <= MOST_NOT_FINITE * asked:
        return lost
    own = config.classifier
    remedy = "check its weights, and mean, std and image_size in the .json beside it" if own else "lower score.lr"
    raise NumericalError(
        f"the scorer ({own or config.model}) gives no finite answer for {lost} of {asked} images", remedy, file=own
    )


def chosen_method(config: ScoreConfig) -> str:
    """A classifier or a column that was named is what is meant. Raises UsageError for both, and for none."""
    if config.classifier is not None and config.column is not None:
        raise UsageError("a classifier and a score column were given", "leave out --classifier or --column")
    if config.classifier is not None:
        return "classifier"
    if config.column is not None:
        return "column"
    if config.method in ("classifier", "column"):
        missing = {"classifier": "--classifier FILE.safetensors|FILE.onnx", "column": "--column NAME"}[config.method]
        raise UsageError(f"--method {config.method} does not say which", f"name it: dcdm score {missing}")
    return config.method


def check_settings(config: ScoreConfig) -> None:
    """What can be known to be wrong before hours of reading images: settings that contradict each other, and a network
    or classifier that cannot be had. Raises what `chosen_method`, `open_extractor` and `classifier_file` raise."""
    method = chosen_method(config)
    # the packaged network is always there
    if method in ("auto", "features") and config.features != PACKAGED:
        open_extractor(config.features, config.feature_size)
    if method == "classifier" and config.classifier is not None:
        classifier_file(config.classifier)


def _by_the_best(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    """Features first, then what the budget allows."""
    rounds_of(train, _labels(train), config)  # too few images are said to be too few before anything is computed

    def trained(name: str, settings: ScoreConfig) -> Method[Scored]:
        known = np.flatnonzero(_labels(train) >= 0)
        images, labels, classes = train.image_paths().take(known), _labels(train)[known], len(train.class_names)
        # a folder for each candidate: none goes on from another one's classifiers
        models, own = config.folds * config.repeats, replace(place, spool=place.spool / name.replace(" ", "-"))
        estimate = partial(training_seconds, images, labels, classes, settings, models, config.budget, job)
        return Method(name, lambda: _scored(_by_trained(train, settings, own, job), settings), estimate)

    size = open_extractor(config.features, config.feature_size).size
    by_features = config.model_copy(update={"method": "features"})
    candidates = [
        Method(FEATURES, lambda: _scored(_by_features(train, by_features, place, job), by_features)),
        *(trained(name, settings) for name, settings in trained_settings(config, size).items()),
    ]
    choice = best_of(candidates, _labels(train), config.budget, job)
    job.note(choice.why)
    used = choice.result.used
    assert used is not None
    about = {"method": used.method, "kept": choice.kept, "methods": choice.table, "choice": choice.why}
    return replace(choice.result, results={**choice.result.results, **about})


def trained_settings(config: ScoreConfig, size: int) -> dict[str, ScoreConfig]:
    """The trained classifiers that `auto` considers, in this order. size: pixels per side of fine-tuning. A network of
    a file is not fine-tuned: only its features are known to be wanted."""
    training = config.model_copy(update={"method": "crossfit"})
    found = {}
    if "/" not in config.features and not config.features.endswith(".safetensors"):
        found[FINE_TUNED] = training.model_copy(update={**FINE_TUNING, "model": config.features, "image_size": size})
    return {**found, SCRATCH: training}


def _scored(scored: Scored, settings: ScoreConfig) -> tuple[dict[str, np.ndarray], Scored]:
    return scored.columns, replace(scored, used=settings)


def _by_features(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    table, extractor = seen_features(train, config, place.features, job)
    fitted = crossfit_features(train, table, extractor, config, job)
    models = [model for model in fitted.models if isinstance(model, OnTrunk)]
    results = {"accuracy": fitted.accuracy, "temperature": fitted.temperature, "folds": len(models)}
    results |= {"suspects": int(fitted.columns["suspect_label"].sum()), "features": str(extractor)}
    return Scored(
        fitted.columns,
        results,
        lambda folder: save_feature_scorer(folder, models, train.class_names, fitted.temperature, extractor),
    )


def seen_features(
    images: Manifest, config: FeaturesConfig, cache: FeatureCache, job: Job
) -> tuple[FeatureTable, Extractor]:
    """Says what sees, and of which images it can hardly see anything."""
    extractor = open_extractor(config.features, config.feature_size, job.device)
    job.note(f"images are seen through features: {extractor}")
    table = cache.of(extractor, images, job)
    sides = np.minimum(images.column("width"), images.column("height"))
    small = int(((sides > 0) & (sides < FEWEST_PIXELS)).sum())
    for count, what in ((small, f"smaller than {FEWEST_PIXELS} px"), (int(table.flat.sum()), "of one colour")):
        if count:
            job.note(
                f"{count} of {len(images)} images are {what}: features say little of them; leave them out, "
                "or train on them: --method crossfit"
            )
    return table, extractor


def _by_trained(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    return (_by_folds_in_chunks if _streamed(train, place) else _by_folds)(train, config, place, job)


def _by_own(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    return (_by_classifier_in_chunks if _streamed(train, place) else _by_classifier)(train, config, place, job)


def _by_classifier(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    own, report = _own(train, config, place, job), job.stoppable("the images have not been classified yet")
    scored = score_with(own, train, job.device, calibrate=config.temperature, progress=report)
    results = {"accuracy": scored.accuracy, "temperature": scored.temperature}
    return Scored(scored.columns, results, lambda folder: save_own_scorer(folder, own, scored.temperature))


def _by_classifier_in_chunks(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    own = _own(train, config, place, job)
    data = ScoreSet(train.image_paths(), _labels(train), np.zeros((1, len(train)), np.int16))
    temperature = _temperature(config, data, [own.model], own.preprocessing, job)
    # workers open it from there, and so does this process
    save_own_scorer(place.scorer, own, temperature)
    columns = _in_chunks(data, place, job, len(own.class_names))
    results = {"accuracy": accuracy_of(columns["predicted"], data.labels), "temperature": temperature}
    return Scored(columns, results, lambda folder: save_own_scorer(folder, own, temperature))


def _by_folds(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    fitted = crossfit(train, config, job, place.spool / "folds")
    return _of_folds(fitted, train, config)


def _by_folds_in_chunks(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    folds = fit_folds(train, config, job, place.spool / "folds")
    # a class that a fold has not seen has no difficulty there: see `crossfit`
    labels = np.where(folds.unknown.any(axis=0), -1, _labels(train))
    data = ScoreSet(train.image_paths(), labels, folds.chosen)
    temperature = _temperature(config, data, folds.models, preprocessing_of(folds.models[0], config), job)
    # only what is needed to ask it: the columns are still to be made
    save_scorer(place.scorer, CrossFit({}, folds.models, temperature, np.nan), train.class_names, config)
    columns = _in_chunks(data, place, job, len(train.class_names)) | {"fold": folds.folds[0].astype(np.int32)}
    return _of_folds(
        CrossFit(columns, folds.models, temperature, accuracy_of(columns["predicted"], labels)), train, config
    )


def _of_folds(fitted: CrossFit, train: Manifest, config: ScoreConfig) -> Scored:
    results = {"accuracy": fitted.accuracy, "temperature": fitted.temperature, "folds": len(fitted.models)}
    results["suspects"] = int(fitted.columns["suspect_label"].sum())
    return Scored(fitted.columns, results, lambda folder: save_scorer(folder, fitted, train.class_names, config))


def _own(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> OwnClassifier:
    assert config.classifier is not None
    own = load_own_classifier(config.classifier, train.class_names, config, job.device, class_map=place.class_map)
    if own.gives_probabilities:
        job.note(f"{own.file.name} gives probabilities: their logarithm is used")
    return own


def _in_chunks(data: ScoreSet, place: Scoring, job: Job, classes: int) -> dict[str, np.ndarray]:
    def worker() -> ChunkScorer:
        return ChunkScorer(Scorer.load(place.scorer, job.device))

    if place.pool is None:
        columns = score_in_chunks(data, worker, place.spool / "chunks", job)
    else:
        with place.pool(partial(open_chunk_scorer, place.scorer, place.threads)) as pool:
            columns = score_in_chunks(data, worker, place.spool / "chunks", job, pool)
    return columns | {"suspect_label": suspects(columns, data.labels, classes)}


def _temperature(
    config: ScoreConfig, data: ScoreSet, models: Sequence[nn.Module], preprocessing: Preprocessing, job: Job
) -> float:
    return sample_temperature(data, models, preprocessing, job.device) if config.temperature else 1.0


def _labels(train: Manifest) -> np.ndarray:
    return train.column("label").astype(np.int64)
