"""Out-of-fold scores: every image is scored by a classifier that was trained on the other folds (not from the paper).

Scores of the images a classifier was trained on pile up at 0 and rank nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from sklearn.model_selection import StratifiedKFold
from torch import nn

from dcdm_cli.config import ScoreConfig
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import (
    Progress,
    chosen_logits,
    load_classifier,
    preprocessing_of,
    save_classifier,
    train_classifier,
)
from dcdm_cli.difficulty.scores import fit_temperature, score_all
from dcdm_cli.errors import UsageError


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


@dataclass(frozen=True)
class FittedFolds:
    """models: of the first round, then of the second, ... folds int16 [R, N]: the fold of each image in each round.
    unknown bool [R, N]: that fold's classifier never saw the class."""

    models: tuple[nn.Module, ...]
    folds: np.ndarray
    unknown: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """int16 [R, N]: which of the models did not see the image."""
        per_round = len(self.models) // len(self.folds)
        return self.folds + (per_round * np.arange(len(self.folds), dtype=np.int16))[:, None]


def crossfit(
    manifest: Manifest,
    config: ScoreConfig,
    device: torch.device | str,
    progress: Progress | None = None,
    store: Path | None = None,
) -> CrossFit:
    """Trains one classifier per fold of `manifest` (the training split) and scores each image with the one that did
    not see it; `config.repeats` times with other folds, averaging the probabilities: one small classifier's opinion of
    an image is mostly luck. store: see `fit_folds`.

    Classes with fewer images than folds are spread over as many folds as they have images. A class whose only image
    (or all copies of it) is in one fold is unknown to that fold's classifier: its scores are NaN, not a difficulty of
    1 that says nothing about the image. Raises UsageError unless two classes have images and one of them at least two.
    """
    labels = manifest.column("label").astype(np.int64)
    fitted = fit_folds(manifest, config, device, progress, store)
    usable = np.where(fitted.unknown.any(axis=0), -1, labels)
    preprocessing = preprocessing_of(fitted.models[0], config)
    logits = chosen_logits(fitted.models, fitted.chosen, manifest.image_paths(), preprocessing, device)
    temperature = 1.0
    if config.temperature:
        temperature = fit_temperature(np.concatenate(logits), np.tile(usable, len(logits)))
    log_probs = log_softmax(logits.astype(np.float64) / temperature, axis=2)
    mean = np.asarray(logsumexp(log_probs, axis=0)) - np.log(len(logits))
    scored = score_all(mean, usable, calibrate=False)
    columns = scored.columns | {"fold": fitted.folds[0].astype(np.int32)}
    return CrossFit(columns, fitted.models, temperature, scored.accuracy)


def fit_folds(
    manifest: Manifest,
    config: ScoreConfig,
    device: torch.device | str,
    progress: Progress | None = None,
    store: Path | None = None,
) -> FittedFolds:
    """The classifiers of every fold and round. store: a folder in which finished ones are kept, and found again."""
    labels, identities = manifest.column("label").astype(np.int64), _identities(manifest)
    paths, names = manifest.image_paths(), manifest.class_names
    models: list[nn.Module] = []
    folds = np.stack([fold_of(identities, labels, config.folds, config.seed + r) for r in range(config.repeats)])
    unknown = np.zeros(folds.shape, bool)
    per_round = int(folds[0].max()) + 1
    for done in range(config.repeats * per_round):
        number, fold = divmod(done, per_round)
        train = np.flatnonzero((folds[number] != fold) & (labels >= 0))
        unknown[number] |= (folds[number] == fold) & ~np.isin(labels, labels[train])
        kept = store / f"fold-{done:04d}" if store else None
        if kept is not None and kept.is_dir():
            models.append(load_classifier(kept, device).model)
            continue
        report = _shifted(progress, done, config.repeats * per_round)
        seed = config.seed + done
        models.append(train_classifier(paths.take(train), labels[train], len(names), config, seed, device, report))
        if kept is not None:
            save_classifier(models[-1], kept, names, config)
    return FittedFolds(tuple(models), folds.astype(np.int16), unknown)


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
            "add images, or score with your own classifier: --method classifier",
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
    """The content hash where there is one, else the path."""
    rows = zip(manifest.column("sample_id"), manifest.column("path"), strict=True)
    return [str(sample_id or path) for sample_id, path in rows]


def _shifted(progress: Progress | None, fold: int, folds: int) -> Progress | None:
    """One bar over all folds."""
    if progress is None:
        return None
    return lambda _, done, total: progress("cross-fitting", fold * total + done, folds * total)
