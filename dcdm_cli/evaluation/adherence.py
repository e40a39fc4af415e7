"""Requested against realised difficulty, and the label frontier. Not from the paper; arrays in, plain numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

FRONTIER_EDGES = tuple(round(0.1 * i, 1) for i in range(11))


def adherence(target: np.ndarray, realised: np.ndarray, agrees: np.ndarray) -> dict[str, Any]:
    """target, realised float [N] in [0, 1]; agrees bool [N]: the judge gives the image the label it was made for.

    spearman is over single images; mean_absolute_error over the targets' mean realised difficulty.
    """
    bins = [_target_bin(t, realised[target == t], agrees[target == t]) for t in np.unique(target)]
    errors = [abs(b["realised_mean"] - b["target"]) for b in bins]
    return {
        "n": len(target),
        "spearman": _rounded(stats.spearmanr(target, realised)[0]) if len(bins) > 1 else None,
        "mean_absolute_error": _rounded(np.mean(errors)),
        "targets": bins,
    }


def frontier(
    real: tuple[np.ndarray, np.ndarray],
    generated: tuple[np.ndarray, np.ndarray],
    edges: Sequence[float] = FRONTIER_EDGES,
) -> list[dict[str, Any]]:
    """Label agreement per bin of realised difficulty, generated beside real: what tells hard from broken.

    real, generated: (realised difficulty [N], judge agrees [N]). A bin with no images has agreement None.
    """
    rows = []
    for low, high in pairwise(edges):
        row: dict[str, Any] = {"bin": [low, high]}
        for name, (s, agrees) in (("real", real), ("generated", generated)):
            inside = (s >= low) & ((s < high) | (high == edges[-1]))
            row[f"{name}_agreement"] = _rounded(agrees[inside].mean()) if inside.any() else None
            row[f"{name}_n"] = int(inside.sum())
        rows.append(row)
    return rows


def _target_bin(target: float, realised: np.ndarray, agrees: np.ndarray) -> dict[str, Any]:
    return {
        "target": _rounded(target, 3),
        "realised_mean": _rounded(realised.mean()),
        "realised_std": _rounded(realised.std()),
        "label_agreement": _rounded(agrees.mean()),
        "n": len(realised),
    }


def _rounded(value: Any, digits: int = 4) -> float:
    return round(float(value), digits)
