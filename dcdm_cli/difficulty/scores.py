"""Scores of one image from a classifier's logits: pure NumPy, one table, one validated entry.

`difficulty` is the paper's score (1 - softmax probability of the true class). The other scores, the temperature and the
search for wrong labels are not from the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import entr, log_softmax, logsumexp
from scipy.special import softmax as scipy_softmax

from dcdm_cli.errors import UsageError

TEMPERATURES = (0.05, 20.0)  # range searched by `fit_temperature`
TEMPERATURE_ROWS = 50_000  # one number needs no more
CHUNK_ROWS = 65_536  # bounds the memory of the float64 intermediates
LEAD = 0.5  # see `suspect_labels`
AGAIN = "read the images and their labels again: dcdm score --force"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, shape and dtype of the logits. Rows with a NaN or an infinity become NaN."""
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    # rows that are not finite are computed as zeros, or NumPy would warn of each
    return np.where(finite, scipy_softmax(np.where(finite, logits, 0.0), axis=-1), np.nan)


def loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy, in [0, inf): 0 easy. Exact near 0, where log(softmax) would round to 0."""
    logits = logits.astype(np.float64)
    return np.asarray(logsumexp(logits - _true(logits, labels)[:, None], axis=1))


def difficulty(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 - p_true, in [0, 1]: 0 easy, 1 hard (paper). Computed from the loss, so that easy images keep their order."""
    return -np.expm1(-loss(logits, labels))


def p_true(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the true class, in [0, 1]: 1 easy."""
    return np.exp(-loss(logits, labels))


def margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p_true minus the largest probability of another class, in [-1, 1]: 1 easy, below 0 misclassified."""
    others = softmax(logits)
    own = _true(others, labels)
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return own - others.max(axis=1)


def entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Entropy of the prediction in nats, in [0, log C]: 0 certain, whether right or wrong. Ignores the label."""
    return entr(softmax(logits)).sum(axis=1)


def mean_log_probs(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Logarithm of the mean probability over rounds of classifiers: float [R, N, C] -> float64 [N, C].

    Fit to be scored as logits: their softmax gives the mean probabilities back. NaN where an answer is not finite.
    """
    # an infinity minus itself is the NaN that is wanted
    with np.errstate(invalid="ignore"):
        log_probs = log_softmax(logits.astype(np.float64) / temperature, axis=2)
        return np.asarray(logsumexp(log_probs, axis=0)) - np.log(len(logits))


Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
SCORES: Mapping[str, Score] = MappingProxyType(
    {"difficulty": difficulty, "p_true": p_true, "loss": loss, "margin": margin, "entropy": entropy}
)


def score_columns(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Every score in `SCORES` as float32 [N], and `predicted` as int32 [N].

    logits: float [N, C], C >= 2, already divided by the temperature. labels: int [N] in [-1, C); -1 = no usable label.
    A row with a NaN or an infinity gets NaN scores and predicted -1; a row without label gets NaN scores only.
    Raises UsageError when the shapes or the labels do not fit.
    """
    logits, labels = _validated(logits, labels)
    finite = np.isfinite(logits).all(axis=1)
    usable = finite & (labels >= 0)
    columns = {name: np.full(len(labels), np.nan, np.float32) for name in SCORES}
    for rows in np.array_split(np.flatnonzero(usable), len(labels) // CHUNK_ROWS + 1):
        for name, score in SCORES.items():
            columns[name][rows] = score(logits[rows], labels[rows])
    predicted = np.full(len(labels), -1, np.int32)
    predicted[finite] = logits[finite].argmax(axis=1)
    return columns | {"predicted": predicted}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in `TEMPERATURES` that minimises the cross-entropy of logits / T (Guo et al. 2017; not from the paper).

    logits: float [N, C] of images the classifier was not trained on. labels: int [N]; rows with label -1 or without
    finite logits are left out, and of many rows an even selection is used. 1.0 when no row is left. Raises UsageError
    when the shapes or the labels do not fit.
    """
    logits, labels = _validated(logits, labels)
    usable = np.flatnonzero(np.isfinite(logits).all(axis=1) & (labels >= 0))
    if not len(usable):
        return 1.0
    usable = usable[:: len(usable) // TEMPERATURE_ROWS + 1]
    logits, labels = logits[usable], labels[usable]
    low, high = np.log(TEMPERATURES)
    found: Any = minimize_scalar(
        # by the logarithm: half and double are equally far from 1
        lambda log_t: loss(logits / np.exp(log_t), labels).mean(),
        bounds=(low, high),
        method="bounded",
    )
    return float(np.exp(found.x))


def suspect_labels(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [N]: labels that are probably wrong, by confident learning (Northcutt et al. 2021; not from the paper).

    probs: float [N, C] from a classifier that did not see the image. labels: int [N]; -1 or NaN rows are never suspect.
    A label is suspect when another class is predicted at least as confidently as that class's own images are on
    average, and its own class less confidently than the average of its own images. Stricter than the source, so that
    images which are only hard are kept: the predicted class must also lead the label by `LEAD`. A class without images
    has no average and is never believed.
    """
    probs, labels = _validated(probs, labels)
    rows = np.arange(len(labels))
    # argmax takes a NaN for the largest
    own, predicted = probs[rows, labels], np.nan_to_num(probs, nan=-1.0).argmax(axis=1)
    other = probs[rows, predicted]
    return contradicted(Rivals(own, other, other - own, predicted), labels, probs.shape[1])


class Rivals(NamedTuple):
    """Of each image, all [N]: the probability of its label, that of the predicted class and how far it leads, and the
    predicted class."""

    own: np.ndarray
    other: np.ndarray
    lead: np.ndarray
    predicted: np.ndarray


def contradicted(rivals: Rivals, labels: np.ndarray, classes: int) -> np.ndarray:
    """bool [N]: the rule of `suspect_labels`."""
    confidence = _mean_self_confidence(rivals.own, labels, classes)
    leads = (rivals.other >= confidence[rivals.predicted]) & (rivals.lead >= LEAD)  # so predicted is not the label
    return leads & (rivals.own < confidence[labels]) & (labels >= 0)


class Scores(NamedTuple):
    """columns: the scores, `predicted` and `suspect_label`. accuracy: of the rows with a label; NaN without any."""

    columns: dict[str, np.ndarray]
    temperature: float
    accuracy: float


def score_all(logits: np.ndarray, labels: np.ndarray, *, calibrate: bool) -> Scores:
    """All there is to say about images from the logits, float [N, C], of classifiers that did not train on them.

    labels: int [N], -1 = not to be scored. calibrate: fit a temperature first and divide by it; otherwise it is 1.
    """
    temperature = fit_temperature(logits, labels) if calibrate else 1.0
    columns = score_columns(logits / temperature, labels)
    columns["suspect_label"] = suspect_labels(softmax(logits / temperature), labels)
    return Scores(columns, temperature, accuracy_of(columns["predicted"], labels))


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -ln p(true class) over the rows, in nats. logits: float [N, C]; labels: int [N] in [0, C)."""
    return float(-_true(log_softmax(np.asarray(logits, np.float64), axis=1), labels).mean())


def accuracy_of(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Of the rows with a label and a finite answer (predicted >= 0): no answer is no wrong one. NaN without any."""
    known = (np.asarray(labels) >= 0) & (np.asarray(predicted) >= 0)
    return float((predicted == labels)[known].mean()) if known.any() else float("nan")


def calibration_error(columns: Mapping[str, np.ndarray], labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al. 2015; not from the paper), in [0, 1]: how far the confidence in the
    predicted class and the share of right predictions are apart, on average over bins of equal width.

    columns: as `score_columns` gives them; labels: int [N]. Rows without a score are left out; NaN without any.
    """
    own, margin = columns["p_true"].astype(np.float64), columns["margin"].astype(np.float64)
    usable = np.isfinite(own) & (labels >= 0)
    if not usable.any():
        return float("nan")
    right = (columns["predicted"] == labels)[usable]
    # own - margin is the largest of another class: the predicted one's, wherever the label does not lead
    confidence = np.where(right, own[usable], (own - margin)[usable])
    place = np.minimum((confidence * bins).astype(int), bins - 1)  # a confidence of 1 is of the last bin
    apart = np.bincount(place, confidence, bins) - np.bincount(place, right, bins)
    return float(np.abs(apart).sum() / usable.sum())


def _mean_self_confidence(own: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """float64 [C]: mean probability of the class over the images labelled so; infinity where there are none."""
    usable = (labels >= 0) & ~np.isnan(own)
    count = np.bincount(labels[usable], minlength=classes)
    total = np.bincount(labels[usable], own[usable], minlength=classes)
    # np.where computes both sides, the division by an empty class too
    return np.where(count, total / np.maximum(count, 1), np.inf)


def _true(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, labels[:, None], axis=1)[:, 0]


def _validated(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits), np.asarray(labels, np.int64)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(f"logits of shape {logits.shape} are not [images, classes] with at least 2 classes", AGAIN)
    if labels.shape != logits.shape[:1]:
        raise UsageError(f"{len(logits)} rows of logits but labels of shape {labels.shape}", AGAIN)
    if labels.size and not -1 <= labels.min() <= labels.max() < logits.shape[1]:
        raise UsageError(f"labels {labels.min()}..{labels.max()} are not all in -1..{logits.shape[1] - 1}", AGAIN)
    return logits, labels
