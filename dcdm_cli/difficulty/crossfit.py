"""Out-of-fold scores: every image is scored by a classifier that was trained on the other folds (not from the paper).

Scores of the images a classifier was trained on pile up at 0 and rank nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold
from torch import nn

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import (
    chosen_logits,
    load_classifier,
    preprocessing_of,
    save_classifier,
    train_classifier,
)
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.difficulty.scores import fit_temperature, mean_log_probs, score_all
from dcdm_cli.errors import MismatchError, NotFoundError, NumericalError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.run.progress import Job, Progress
from dcdm_cli.run.roles import fingerprint
from dcdm_cli.run.settings import ScoreConfig

PROGRESS = "cross-fitting"


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
        return _unseen(self.folds).astype(np.int16)


def crossfit(manifest: Manifest, config: ScoreConfig, job: Job, checkpoints: Path | None = None) -> CrossFit:
    """Trains one classifier per fold of `manifest` (the training split) and scores each image with the one that did
    not see it; `config.repeats` times with other folds, averaging the probabilities: one small classifier's opinion of
    an image is mostly luck.

    Classes with fewer images than folds are spread over as many folds as they have images. A class whose only image
    (or all copies of it) is in one fold is unknown to that fold's classifier: its scores are NaN, not a difficulty of
    1 that says nothing about the image.

    checkpoints: a folder for classifiers, finished and begun; the same call goes on from them. Raises UsageError unless
    two classes have images and one of them at least two, InterruptedRunError when asked to stop.
    """
    labels = manifest.column("label").astype(np.int64)
    fitted = fit_folds(manifest, config, job, checkpoints)
    usable = np.where(fitted.unknown.any(axis=0), -1, labels)
    preprocessing = preprocessing_of(fitted.models[0], config)
    report = job.stoppable(f"{len(fitted.models)} classifiers are trained")
    logits = chosen_logits(
        fitted.models, fitted.chosen, manifest.image_paths(), preprocessing, job.device, progress=report
    )
    temperature = 1.0
    if config.temperature:
        temperature = fit_temperature(np.concatenate(logits), np.tile(usable, len(logits)))
    # the temperature is in the logarithms already
    scored = score_all(mean_log_probs(logits, temperature), usable, calibrate=False)
    columns = scored.columns | {"fold": fitted.folds[0].astype(np.int32)}
    return CrossFit(columns, fitted.models, temperature, scored.accuracy)


def fit_folds(
    manifest: Manifest,
    config: ScoreConfig,
    job: Job,
    checkpoints: Path | None = None,
) -> FittedFolds:
    """The classifiers of every fold and round. checkpoints, and what is raised: as in `crossfit`."""
    labels, images, names = manifest.column("label").astype(np.int64), manifest.image_paths(), manifest.class_names
    # drawn from the settings, not stored: `unseen_models` finds the same again
    folds = rounds_of(manifest, labels, config)
    per_round, unknown, models = int(folds[0].max()) + 1, np.zeros(folds.shape, bool), []
    # the loss is told beside the one bar over all folds, not under the name that `fitting` has for its work
    named = replace(job, detail=lambda _, text: job.detail(PROGRESS, text))
    kept, total = checkpoints / _key(manifest, config) if checkpoints else None, config.repeats * per_round
    for done in range(total):
        number, fold = divmod(done, per_round)
        train = np.flatnonzero((folds[number] != fold) & (labels >= 0))
        unknown[number] |= (folds[number] == fold) & ~np.isin(labels, labels[train])
        report, seed, seen = _shifted(job.progress, done, total), config.seed + done, images.take(train)
        fit = partial(train_classifier, seen, labels[train], len(names), config, seed, job.device, report)
        models.append(_once(kept / str(done) if kept else None, fit, names, config, named))
        job.stop_if_asked(f"{done + 1} of {total} classifiers are trained")
    return FittedFolds(tuple(models), folds.astype(np.int16), unknown)


def _key(manifest: Manifest, config: ScoreConfig) -> str:
    """Of all that the classifiers depend on: what was made from other images or settings is not found again."""
    images = manifest.digest("sample_id", "path", "label")
    return hash_json([fingerprint(config), manifest.class_names, images])[:16]


def _once(
    kept: Path | None, fit: Callable[[Keep], nn.Module], names: Sequence[str], config: ScoreConfig, job: Job
) -> nn.Module:
    """The classifier from its folder, where it is what was kept there; else made, and kept there."""
    if kept is None:
        return fit(Keep(job))
    if kept.is_dir():
        try:
            return _finished(kept, names, config, job)
        except (MismatchError, NotFoundError, NumericalError, UsageError) as error:  # training again mends it
            job.warn(f"{error.message}: this classifier is trained again")
    keep = Keep(job, kept.parent / "begun" / kept.name)
    model = fit(keep)
    save_classifier(model, kept, names, config)
    # not before: until the classifier is saved, its checkpoints are all that there is of it
    keep.forget()
    return model


def _finished(kept: Path, names: Sequence[str], config: ScoreConfig, job: Job) -> nn.Module:
    """Raises what `load_classifier` raises, and MismatchError where it says that it was made otherwise than asked."""
    stored = load_classifier(kept, job.device)
    # without the hub's weights, which are not fetched for one that is trained
    said = stored.config.model_dump(mode="json", exclude={"pretrained"})
    if stored.class_names != tuple(names) or said != config.model_dump(mode="json", include=set(said)):
        raise MismatchError(f"{kept} holds other classes or settings than it had", "dcdm score --force", file=kept)
    return stored.model


def unseen_models(manifest: Manifest, config: ScoreConfig) -> np.ndarray:
    """int64 [N, rounds]: which of `CrossFit.models` did not train on each row of the training split, one per round.
    Derived from the rows and settings, as `crossfit` does it.

    Raises MismatchError when that contradicts the folds that the manifest records.
    """
    folds = rounds_of(manifest, manifest.column("label").astype(np.int64), config)
    # of the other rounds the manifest records nothing; they come from the same rows and settings
    if not np.array_equal(folds[0], manifest.column("fold")):
        raise MismatchError("the scorer was fitted on other images than these", "make it again: dcdm score --force")
    return _unseen(folds).T


def rounds_of(manifest: Manifest, labels: np.ndarray, config: ScoreConfig) -> np.ndarray:
    """int64 [rounds, N]: the fold of each row in each round."""
    identities = identities_of(manifest)
    return np.stack([fold_of(identities, labels, config.folds, config.seed + r) for r in range(config.repeats)])


def _unseen(folds: np.ndarray) -> np.ndarray:
    """int64 [rounds, N]: in the order of the models, the one of each round that did not get the image."""
    return folds.astype(np.int64) + (int(folds[0].max()) + 1) * np.arange(len(folds))[:, None]


def fold_of(identities: Sequence[str], labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int64 [N]: the fold each image belongs to, stratified by class, at most `folds` of them.

    Images with the same identity share a fold: a copy in another fold would be a look at the answer. The order of the
    images does not matter.
    """
    # np.unique sorts, which is why the order of the rows does not matter
    _, first, copy_of = np.unique(np.asarray(identities, dtype=str), return_index=True, return_inverse=True)
    distinct = labels[first]
    counts = np.bincount(distinct[distinct >= 0])
    if np.count_nonzero(counts) < 2 or counts.max() < 2:
        raise UsageError(
            f"out-of-fold scores need 2 classes, one with 2 different images; there are {counts.tolist()[:20]} of each",
            "add images, or score with your own classifier: dcdm score --classifier FILE",
        )
    folds = min(folds, int(counts.max()))  # scikit-learn refuses more folds than the largest class has images
    fold = np.empty(len(distinct), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # wanted: see `crossfit`
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(distinct, distinct)
        for number, (_, members) in enumerate(splits):
            fold[members] = number
    return fold[copy_of]


def identities_of(manifest: Manifest) -> list[str]:
    """The content's part of the sample id where there is one, else the path."""
    rows = zip(manifest.column("sample_id"), manifest.column("path"), strict=True)
    return [sample_id.partition("-")[0] if sample_id else str(path) for sample_id, path in rows]


def _shifted(progress: Progress, fold: int, folds: int) -> Progress:
    """One bar over all folds."""
    return lambda _, done, total: progress(PROGRESS, fold * total + done, folds * total)
