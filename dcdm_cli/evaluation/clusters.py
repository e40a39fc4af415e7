"""What makes the images of a class hard, by how they look: groups of alike images in a feature space. Not from the
paper, which names the by-product without saying how to measure it.

Groups are found among real images; generated ones are counted into the nearest group of their class, so that both stand
side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from dcdm_cli.arrays import rounded

FEWEST = 8  # images of a group on average; smaller classes have fewer groups
TYPICAL = 4  # pictures that stand for a group
RIVALS = 3  # classes named that a group is taken for


@dataclass(frozen=True)
class Placed:
    """Images in a feature space. features: float [N, D]; labels: int [N]; difficulty: float [N], NaN = unknown;
    predicted: int [N] by the scorer, -1 = unknown."""

    features: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray
    predicted: np.ndarray

    def rows(self, label: int) -> np.ndarray:
        """Of a class, those with a difficulty."""
        return np.flatnonzero((self.labels == label) & np.isfinite(self.difficulty))


def hard_groups(
    real: Placed, class_names: Sequence[str], generated: Placed | None = None, most: int = 4, seed: int = 0
) -> list[dict[str, Any]]:
    """A row per class with images and group, hardest group of each class first.

    class, group (0 = hardest), and for real and generated images each: n, difficulty (mean), mistaken_for (the classes
    most often predicted instead, each with its share of the group), typical (row numbers nearest to the group's
    middle). Generated ones are None where there are none. most: groups of a class.
    """
    rows = []
    for label, name in enumerate(class_names):
        mine = real.rows(label)
        if not len(mine):
            continue
        middles, group = _grouped(_directions(real.features[mine]), most, seed)
        made = generated.rows(label) if generated is not None else np.zeros(0, np.int64)
        made_group = _nearest(_directions(generated.features[made]), middles) if generated is not None else made
        found = []
        for number in range(len(middles)):
            about = _described(real, mine[group == number], middles[number], class_names)
            theirs = made[made_group == number]
            other = _described(generated, theirs, middles[number], class_names) if generated and len(theirs) else None
            found.append({"class": name, "real": about, "generated": other})
        found.sort(key=lambda row: -row["real"]["difficulty"])
        rows += [{"class": row["class"], "group": number, **row} for number, row in enumerate(found)]
    return rows


def _grouped(directions: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(middles [K, D], group of each image)"""
    count = max(1, min(most, len(directions) // FEWEST))
    found: Any = KMeans(count, n_init=3, random_state=seed).fit(directions)  # pyright: ignore[reportArgumentType]
    used, group = np.unique(found.labels_, return_inverse=True)  # equal images leave middles without any
    return found.cluster_centers_[used], group


def _described(placed: Placed, rows: np.ndarray, middle: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    distance = np.linalg.norm(_directions(placed.features[rows]) - middle, axis=1)
    return {
        "n": len(rows),
        "difficulty": rounded(placed.difficulty[rows].mean()),
        "mistaken_for": _rivals(placed.predicted[rows], placed.labels[rows], class_names),
        "typical": rows[np.argsort(distance, kind="stable")[:TYPICAL]].tolist(),
    }


def _rivals(predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes that images are taken for most often, their own left out."""
    counts = np.bincount(predicted[(predicted >= 0) & (predicted != labels)], minlength=len(class_names))
    first = np.argsort(-counts, kind="stable")[:RIVALS]
    return [{"class": class_names[r], "share": rounded(counts[r] / len(predicted))} for r in first if counts[r]]


def _directions(features: np.ndarray) -> np.ndarray:
    """Of length 1: that is what distances between features mean."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    # an image in which the network sees nothing has no direction
    return np.asarray(features / np.where(length > 0, length, 1), np.float32)


def _nearest(directions: np.ndarray, middles: np.ndarray) -> np.ndarray:
    return np.argmin(((directions[:, None] - middles[None]) ** 2).sum(2), axis=1)
