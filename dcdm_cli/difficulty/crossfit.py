"""Out-of-fold scores: every image is scored by a classifier that was trained on the other folds (not from the paper).

Scores of the images a classifier was trained on pile up at 0 and rank nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.model_selection import StratifiedKFold
from torch import nn

from dcdm_cli.config import ScoreConfig
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import (
    Progress,
    load_classifier,
    predict_logits,
    save_classifier,
    train_classifier,
)
from dcdm_cli.difficulty.scores import fit_temperature, score_all
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.job import Job


@dataclass(frozen=True)
class CrossFit:
    """Honest scores and the classifiers behind them.

    columns: the manifest's score columns, one value per row; fold = k means that models[k] did not see the row
    (of the first round; models holds the rounds one after the other).
    temperature: divides the logits. accuracy: share of the scored rows whose prediction matches the label.
    """

    columns: dict[str, np.ndarray]
    models: tuple[nn.Module, ...]
    temperature: float
    accuracy: float


def crossfit(manifest: Manifest, config: ScoreConfig, job: Job, checkpoints: Path | None = None) -> CrossFit:
    """Trains one classifier per fold of `manifest` (the training split) and scores each image with the one that did
    not see it; `config.repeats` times with other folds, averaging the probabilities: one small classifier's opinion of
    an image is mostly luck.

    Classes with fewer images than folds are spread over as many folds as they have images. A class whose only image
    (or all copies of it) is in one fold is unknown to that fold's classifier: its scores are NaN, not a difficulty of
    1 that says nothing about the image.

    checkpoints: a folder for finished classifiers; the same call goes on from them. Raises UsageError unless two
    classes have images and one of them at least two, InterruptedRunError when asked to stop.
    """
    labels = manifest.column("label").astype(np.int64)
    kept = checkpoints / _key(manifest, config) if checkpoints else None
    rounds = [_fit_round(manifest, labels, config, number, job, kept) for number in range(config.repeats)]
    usable = np.where(np.any([r.unknown for r in rounds], axis=0), -1, labels)
    logits = np.stack([r.logits for r in rounds])
    temperature = 1.0
    if config.temperature:
        temperature = fit_temperature(np.concatenate(logits), np.tile(usable, len(rounds)))
    log_probs = log_softmax(logits.astype(np.float64) / temperature, axis=2)
    mean = np.asarray(logsumexp(log_probs, axis=0)) - np.log(len(rounds))
    scored = score_all(mean, usable, calibrate=False)
    columns = scored.columns | {"fold": rounds[0].folds.astype(np.int32)}
    return CrossFit(columns, tuple(m for r in rounds for m in r.models), temperature, scored.accuracy)


class _Round(NamedTuple):
    """logits float32 [N, C], out of fold; unknown bool [N]: the fold's classifier never saw the class."""

    logits: np.ndarray
    unknown: np.ndarray
    folds: np.ndarray
    models: list[nn.Module]


def _fit_round(
    manifest: Manifest,
    labels: np.ndarray,
    config: ScoreConfig,
    number: int,
    job: Job,
    kept: Path | None,
) -> _Round:
    folds = fold_of(_identities(manifest), labels, config.folds, config.seed + number)
    count = int(folds.max()) + 1
    paths, classes = manifest.paths(), len(manifest.class_names)
    logits, unknown, models = np.zeros((len(labels), classes), np.float32), np.zeros(len(labels), bool), []
    for fold in range(count):
        train, test = np.flatnonzero((folds != fold) & (labels >= 0)), np.flatnonzero(folds == fold)
        done, total = number * count + fold, config.repeats * count
        seen, report = [paths[i] for i in train], _shifted(job.progress, done, total)
        fit = partial(train_classifier, seen, labels[train], classes, config, config.seed + done, job.device, report)
        model = _once(kept / str(done) if kept else None, fit, manifest.class_names, config, job.device)
        job.stop_if_asked(f"{done + 1} of {total} classifiers are trained")
        logits[test] = predict_logits(model, [paths[i] for i in test], config, job.device)
        unknown[test] = ~np.isin(labels[test], labels[train])
        models.append(model)
    return _Round(logits, unknown, folds, models)


def _key(manifest: Manifest, config: ScoreConfig) -> str:
    """Of all that the classifiers depend on: what was made from other images or settings is not found again."""
    images = [manifest.column(name).tolist() for name in ("sample_id", "path", "label")]
    return hash_json([config.model_dump(mode="json"), manifest.class_names, images])[:16]


def _once(
    kept: Path | None, fit: Callable[[], nn.Module], names: Sequence[str], config: ScoreConfig, device: str
) -> nn.Module:
    """The classifier from its folder, or made and kept there."""
    if kept is None:
        return fit()
    if kept.is_dir():
        return load_classifier(kept, device).model
    model = fit()
    save_classifier(model, kept, names, config)
    return model


def unseen_models(manifest: Manifest, config: ScoreConfig) -> np.ndarray:
    """int64 [N, rounds]: which of `CrossFit.models` did not train on each row of the training split, one per round.
    Derived from the rows and settings, as `crossfit` does it.

    Raises MismatchError when that contradicts the folds that the manifest records.
    """
    labels = manifest.column("label").astype(np.int64)
    folds = [fold_of(_identities(manifest), labels, config.folds, config.seed + r) for r in range(config.repeats)]
    if not np.array_equal(folds[0], manifest.column("fold")):
        raise MismatchError("the scorer was fitted on other images than these", "make it again: dcdm score --force")
    return np.stack([number * (fold.max() + 1) + fold for number, fold in enumerate(folds)], axis=1)


def fold_of(identities: Sequence[str], labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int64 [N]: the fold each image belongs to, stratified by class, at most `folds` of them.

    Images with the same identity share a fold: a copy in another fold would be a look at the answer. The order of the
    images does not matter.
    """
    _, first, copy_of = np.unique(np.asarray(identities, dtype=str), return_index=True, return_inverse=True)
    distinct = labels[first]
    counts = np.bincount(distinct[distinct >= 0])
    if np.count_nonzero(counts) < 2 or counts.max() < 2:
        raise UsageError(
            f"out-of-fold scores need 2 classes, one with 2 different images; there are {counts.tolist()[:20]} of each",
            "add images, or score with your own classifier: dcdm score --classifier FILE",
        )
    folds = min(folds, int(counts.max()))
    fold = np.empty(len(distinct), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # wanted: see `crossfit`
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(distinct, distinct)
        for number, (_, members) in enumerate(splits):
            fold[members] = number
    return fold[copy_of]


def _identities(manifest: Manifest) -> list[str]:
    """The content's part of the sample id where there is one, else the path."""
    rows = zip(manifest.column("sample_id"), manifest.column("path"), strict=True)
    return [sample_id.partition("-")[0] if sample_id else str(path) for sample_id, path in rows]


def _shifted(progress: Progress, fold: int, folds: int) -> Progress:
    """One bar over all folds."""
    return lambda _, done, total: progress("cross-fitting", fold * total + done, folds * total)
