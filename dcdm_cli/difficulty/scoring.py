"""The scoring stage: which classifiers score the training images, and the columns and numbers that come of it.

Small sets are scored in memory. Large ones, and those that a crew scores, go through `stream` chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdm_cli.config import ScoreConfig
from dcdm_cli.crew.boss import Crew
from dcdm_cli.crew.messages import OpenWorker
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import preprocessing_of
from dcdm_cli.difficulty.crossfit import CrossFit, crossfit, fit_folds
from dcdm_cli.difficulty.own_classifier import OwnClassifier, load_own_classifier, score_with
from dcdm_cli.difficulty.scorer import Scorer, save_own_scorer, save_scorer
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
    """scorer: folder the classifiers are kept in. spool: what a stopped run goes on from. class_map: names in output
    order, for a classifier that does not say. crew: opens workers for large sets, None = this process. threads: CPU
    threads of a worker."""

    scorer: Path
    spool: Path
    class_map: Sequence[str] | None = None
    crew: Callable[[OpenWorker], AbstractContextManager[Crew]] | None = None
    threads: int | None = None


def score_images(
    train: Manifest, config: ScoreConfig, place: Scoring, job: Job
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Score columns of the training images, and what to report. Leaves the scorer in its folder."""
    if config.method == "column":
        return {}, {"method": "column"}
    streamed = len(train) > STREAM_ABOVE or place.crew is not None
    if config.method == "classifier" or config.classifier is not None:
        return _by_own_classifier(train, config, place, job, streamed)
    if streamed:
        return _by_folds_in_chunks(train, config, place, job)
    fitted = crossfit(train, config, job.device, job.progress, place.spool / "folds")
    save_scorer(place.scorer, fitted, train.class_names, config)
    return fitted.columns, _report("crossfit", fitted.columns, fitted.accuracy, fitted.temperature, len(fitted.models))


def _by_own_classifier(
    train: Manifest, config: ScoreConfig, place: Scoring, job: Job, streamed: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if config.classifier is None:
        raise UsageError(
            "--method classifier needs the classifier", "name it with --classifier FILE.safetensors|FILE.onnx"
        )
    own = load_own_classifier(config.classifier, train.class_names, config, job.device, class_map=place.class_map)
    if not streamed:
        scored = score_with(own, train, job.device, calibrate=config.temperature, progress=job.progress)
        save_own_scorer(place.scorer, own, scored.temperature)
        results = {"method": "classifier", "accuracy": scored.accuracy, "temperature": scored.temperature}
        return scored.columns, results
    data = ScoreSet(train.image_paths(), _labels(train), np.zeros((1, len(train)), np.int16))
    temperature = _temperature(config, data, own, job.device)
    save_own_scorer(place.scorer, own, temperature)
    columns = _in_chunks(data, place, job, len(own.class_names))
    results = _report("classifier", columns, _accuracy(columns, data.labels), temperature, 1)
    return columns, {key: results[key] for key in ("method", "accuracy", "temperature")}


def _by_folds_in_chunks(
    train: Manifest, config: ScoreConfig, place: Scoring, job: Job
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    fitted = fit_folds(train, config, job.device, job.progress, place.spool / "folds")
    labels = np.where(fitted.unknown.any(axis=0), -1, _labels(train))
    data = ScoreSet(train.image_paths(), labels, fitted.chosen)
    preprocessing = preprocessing_of(fitted.models[0], config)
    temperature = sample_temperature(data, fitted.models, preprocessing, job.device) if config.temperature else 1.0
    save_scorer(place.scorer, CrossFit({}, fitted.models, temperature, np.nan), train.class_names, config)
    columns = _in_chunks(data, place, job, len(train.class_names))
    columns |= {"fold": fitted.folds[0].astype(np.int32)}
    return columns, _report("crossfit", columns, _accuracy(columns, labels), temperature, len(fitted.models))


def _in_chunks(data: ScoreSet, place: Scoring, job: Job, classes: int) -> dict[str, np.ndarray]:
    worker: Callable[[], ChunkScorer] = lambda: ChunkScorer(Scorer.load(place.scorer, job.device))  # noqa: E731
    if place.crew is None:
        columns = score_in_chunks(data, worker, place.spool / "chunks", job)
    else:
        with place.crew(partial(open_chunk_scorer, place.scorer, place.threads)) as crew:
            columns = score_in_chunks(data, worker, place.spool / "chunks", job, crew)
    return columns | {"suspect_label": suspects(columns, data.labels, classes)}


def _temperature(config: ScoreConfig, data: ScoreSet, own: OwnClassifier, device: torch.device | str) -> float:
    return sample_temperature(data, [own.model], own.preprocessing, device) if config.temperature else 1.0


def _report(
    method: str, columns: dict[str, np.ndarray], accuracy: float, temperature: float, models: int
) -> dict[str, Any]:
    results = {"method": method, "accuracy": accuracy, "temperature": temperature}
    return results | {"suspects": int(columns["suspect_label"].sum()), "folds": models}


def _accuracy(columns: dict[str, np.ndarray], labels: np.ndarray) -> float:
    known = labels >= 0
    return float((columns["predicted"] == labels)[known].mean()) if known.any() else float("nan")


def _labels(train: Manifest) -> np.ndarray:
    return train.column("label").astype(np.int64)
