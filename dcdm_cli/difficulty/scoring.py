"""The scoring stage: which classifiers score the training images, and the columns and numbers that come of it.

Small sets are scored in memory. Large ones, and those that a crew scores, go through `stream` chunk by chunk.
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

from dcdm_cli.config import ScoreConfig
from dcdm_cli.crew.boss import Crew
from dcdm_cli.crew.messages import OpenWorker
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import Preprocessing, preprocessing_of
from dcdm_cli.difficulty.crossfit import CrossFit, crossfit, fit_folds
from dcdm_cli.difficulty.own_classifier import OwnClassifier, load_own_classifier, score_with
from dcdm_cli.difficulty.scorer import Scorer, save_own_scorer, save_scorer
from dcdm_cli.difficulty.scores import accuracy_of
from dcdm_cli.difficulty.stream import (
    ChunkScorer,
    ScoreSet,
    open_chunk_scorer,
    sample_temperature,
    score_in_chunks,
    suspects,
)
from dcdm_cli.errors import UsageError
from dcdm_cli.job import Job

STREAM_ABOVE = 20_000  # images; below, all logits fit and nothing is gained by chunks


@dataclass(frozen=True)
class Scoring:
    """spool: folder that a stopped run goes on from. class_map: names in output order, for a classifier that does not
    say. crew: opens workers for large sets, None = this process. threads: CPU threads of a worker."""

    spool: Path
    class_map: Sequence[str] | None = None
    crew: Callable[[OpenWorker], AbstractContextManager[Crew]] | None = None
    threads: int | None = None

    @property
    def scorer(self) -> Path:
        """Where workers find the classifiers."""
        return self.spool / "scorer"


@dataclass(frozen=True)
class Scored:
    """columns: the manifest's score columns, one value per image. results: what to report.

    save_scorer: writes what measures generated images into a folder, or removes what was there.
    """

    columns: dict[str, np.ndarray]
    results: dict[str, Any]
    save_scorer: Callable[[Path], None]


def score_images(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    """Scores the training images. Raises UsageError for settings that contradict each other or the images,
    InterruptedRunError when asked to stop; the same call with the same spool goes on."""
    method = chosen_method(config)
    if method == "column":
        return Scored({}, {"method": method}, lambda folder: shutil.rmtree(folder, ignore_errors=True))
    streamed = len(train) > STREAM_ABOVE or place.crew is not None
    scorers = {
        ("crossfit", False): _by_folds,
        ("crossfit", True): _by_folds_in_chunks,
        ("classifier", False): _by_classifier,
        ("classifier", True): _by_classifier_in_chunks,
    }
    scored = scorers[method, streamed](train, config, place, job)
    return replace(scored, results={"method": method, **scored.results})


def chosen_method(config: ScoreConfig) -> str:
    """A classifier or a column that was named is what is meant. Raises UsageError for both, and for none."""
    if config.classifier is not None and config.column is not None:
        raise UsageError("a classifier and a score column were given", "leave out --classifier or --column")
    if config.classifier is not None:
        return "classifier"
    if config.column is not None:
        return "column"
    if config.method != "crossfit":
        missing = {"classifier": "--classifier FILE.safetensors|FILE.onnx", "column": "--column NAME"}[config.method]
        raise UsageError(f"--method {config.method} does not say which", f"name it: dcdm score {missing}")
    return config.method


def _by_classifier(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    own, report = _own(train, config, place, job), job.stoppable("the images have not been classified yet")
    scored = score_with(own, train, job.device, calibrate=config.temperature, progress=report)
    results = {"accuracy": scored.accuracy, "temperature": scored.temperature}
    return Scored(scored.columns, results, lambda folder: save_own_scorer(folder, own, scored.temperature))


def _by_classifier_in_chunks(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    own = _own(train, config, place, job)
    data = ScoreSet(train.image_paths(), _labels(train), np.zeros((1, len(train)), np.int16))
    temperature = _temperature(config, data, [own.model], own.preprocessing, job)
    save_own_scorer(place.scorer, own, temperature)
    columns = _in_chunks(data, place, job, len(own.class_names))
    results = {"accuracy": accuracy_of(columns["predicted"], data.labels), "temperature": temperature}
    return Scored(columns, results, lambda folder: save_own_scorer(folder, own, temperature))


def _by_folds(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    fitted = crossfit(train, config, job, place.spool / "folds")
    return _of_folds(fitted, train, config)


def _by_folds_in_chunks(train: Manifest, config: ScoreConfig, place: Scoring, job: Job) -> Scored:
    folds = fit_folds(train, config, job, place.spool / "folds")
    labels = np.where(folds.unknown.any(axis=0), -1, _labels(train))
    data = ScoreSet(train.image_paths(), labels, folds.chosen)
    temperature = _temperature(config, data, folds.models, preprocessing_of(folds.models[0], config), job)
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

    if place.crew is None:
        columns = score_in_chunks(data, worker, place.spool / "chunks", job)
    else:
        with place.crew(partial(open_chunk_scorer, place.scorer, place.threads)) as crew:
            columns = score_in_chunks(data, worker, place.spool / "chunks", job, crew)
    return columns | {"suspect_label": suspects(columns, data.labels, classes)}


def _temperature(
    config: ScoreConfig, data: ScoreSet, models: Sequence[nn.Module], preprocessing: Preprocessing, job: Job
) -> float:
    return sample_temperature(data, models, preprocessing, job.device) if config.temperature else 1.0


def _labels(train: Manifest) -> np.ndarray:
    return train.column("label").astype(np.int64)
