"""Simple measurable properties of images, and which of them move with difficulty. Not from the paper, which names the
by-product (what makes a class hard) without saying how to measure it.

One image in, a handful of numbers out; then arrays in, correlations out. Size and position are those of the foreground:
what differs from the picture's rim, which is crude where the background is not plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage, stats

SIDE = 64  # larger images are reduced first: factors must not depend on resolution
FEWEST = 8  # images of a class below which no correlation is given
SIGNIFICANT = 0.05  # after Holm's correction over the factors
WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "more contrast"),
    "sharpness": ("blurrier", "sharper"),
    "size": ("smaller", "larger"),
    "position": ("more central", "further from the middle"),
    "colour": ("greyer", "more colourful"),
}
FACTORS = tuple(WORDS)
_LUMA = np.array([0.299, 0.587, 0.114])


def measure(image: Image.Image) -> dict[str, float]:
    """Every factor of an RGB image, in [0, 1] except sharpness and colour, which have no upper end."""
    # a copy, as `thumbnail` changes the image that the caller still has
    small = image if max(image.size) <= SIDE else image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float64) / 255
    luma = pixels @ _LUMA
    size, position = _foreground(pixels)
    return {
        "brightness": float(luma.mean()),
        "contrast": float(2 * luma.std()),
        # by contrast, or that is what it measures; one grey level at least, for blank images
        "sharpness": float(np.abs(ndimage.laplace(luma)).mean() / max(luma.std(), 1 / 255)),
        "size": size,
        "position": position,
        "colour": _colourfulness(pixels),
    }


def table(images: Sequence[Image.Image]) -> np.ndarray:
    """float64 [N, factors]"""
    return np.array([list(measure(image).values()) for image in images]).reshape(len(images), len(FACTORS))


@dataclass(frozen=True)
class MeasuredFactors:
    """factors float [N, factors], difficulty float [N], label int [N], predicted int [N] by the scorer, -1 unknown."""

    factors: np.ndarray
    difficulty: np.ndarray
    label: np.ndarray
    predicted: np.ndarray


def hard_factors(measured: MeasuredFactors, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class: rank correlation of every factor with difficulty, the ones that stand out in words, and what the class
    is confused with. Classes with fewer than `FEWEST` images have no correlations."""
    return [
        {"class": name, **_class(measured, label, names)}
        for label, name in enumerate(names)
        if (measured.label == label).any()
    ]


def _class(measured: MeasuredFactors, label: int, names: Sequence[str]) -> dict[str, Any]:
    mine = np.flatnonzero((measured.label == label) & np.isfinite(measured.difficulty))
    found = _correlations(measured.factors[mine], measured.difficulty[mine])
    wrong = measured.predicted[mine][(measured.predicted[mine] != label) & (measured.predicted[mine] >= 0)]
    counts = np.bincount(wrong, minlength=len(names))
    rival = int(counts.argmax()) if counts.sum() else None
    return {
        "n": len(mine),
        "correlations": {name: row["correlation"] for name, row in found.items()},
        "moving": [WORDS[name][row["correlation"] > 0] for name, row in _strongest(found)],
        "confused_with": None if rival is None else names[rival],
        "confused_share": None if rival is None else round(float(counts[rival] / len(mine)), 4),
    }


def _correlations(factors: np.ndarray, difficulty: np.ndarray) -> Mapping[str, Mapping[str, Any]]:
    empty = {"correlation": None, "p": None}
    found: dict[str, Mapping[str, Any]] = dict.fromkeys(FACTORS, empty)
    if len(factors) < FEWEST or np.ptp(difficulty) == 0:
        return found
    for name, values in zip(FACTORS, factors.T, strict=True):
        if np.ptp(values) > 1e-9:  # less is rounding, and ranks of rounding correlate with anything
            result: Any = stats.spearmanr(values, difficulty)
            found[name] = {"correlation": round(float(result.statistic), 3), "p": float(result.pvalue)}
    return found


def _strongest(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Factors whose correlation is significant by Holm's step-down rule, strongest first."""
    known = sorted(((n, row) for n, row in found.items() if row["p"] is not None), key=lambda item: item[1]["p"])
    kept = []
    for rank, item in enumerate(known):
        # step-down: after the first that fails none counts, however small its own p is by that
        if item[1]["p"] > SIGNIFICANT / (len(known) - rank):
            break
        kept.append(item)
    return sorted(kept, key=lambda item: -abs(item[1]["correlation"]))


def _foreground(pixels: np.ndarray) -> tuple[float, float]:
    """Share of the area that differs from the rim, and its centre's distance from the middle (1 = a corner)."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(rim, axis=0), axis=2)
    weight = np.where(distance > 0.5 * distance.max(), distance, 0.0)
    if weight.sum() == 0:
        return 0.0, 0.0
    height, width = weight.shape
    y, x = np.argwhere(weight > 0).T @ weight[weight > 0] / weight.sum()
    offset = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5) / np.hypot(0.5, 0.5)
    return float((weight > 0).mean()), float(offset)


def _colourfulness(pixels: np.ndarray) -> float:
    """Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003; on [0, 1] values."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    first, second = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean()))
