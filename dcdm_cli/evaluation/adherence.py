"""Requested against realised difficulty, per class too, and the label frontier. Not from the paper.

Arrays of one number per image in, plain numbers out. Images never come here: whoever makes or reads them passes them by
in batches (`Agreement`), so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from dcdm_cli.arrays import rounded

FRONTIER_EDGES = tuple(round(0.1 * i, 1) for i in range(11))
MOST_TARGETS = 24  # more distinct targets than these are grouped into tenths
GRID = np.linspace(0, 1, 101)
LABELS_HOLD = 0.9  # agreement from which a bin counts as keeping its labels
TELLING = 10  # images: one that lost its label is then no more than what is allowed


class Agreement:
    """Collects, batch by batch, whether a judge gives images the label they were made for. One byte per image."""

    def __init__(self, judge: Callable[[np.ndarray], np.ndarray] | None) -> None:
        """judge: images uint8 [B, H, W, 3] -> labels int [B]; None = there is none to ask."""
        self._judge, self._parts = judge, []

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        if self._judge is not None:
            self._parts.append(self._judge(images) == labels)

    @property
    def agrees(self) -> np.ndarray | None:
        """bool [N], in the order the batches came; None without a judge."""
        # NumPy joins no empty list, and no images are no error
        return None if self._judge is None else np.concatenate([np.zeros(0, bool), *self._parts])


def adherence(target: np.ndarray, realised: np.ndarray, agrees: np.ndarray | None) -> dict[str, Any]:
    """target, realised float [N] in [0, 1]; agrees bool [N]: the judge gives the image the label it was made for; None
    here and below = there is no judge, and label agreement is None.

    spearman is over single images; mean_absolute_error over the targets' mean realised difficulty. Images drawn from a
    distribution have many targets: those are grouped into tenths.
    """
    grouped = _grouped(target)
    rows = [grouped == group for group in np.unique(grouped)]
    bins = [_target_bin(target[mine].mean(), realised[mine], share_kept(agrees, mine)) for mine in rows]
    errors = [abs(b["realised_mean"] - b["target"]) for b in bins]
    return {
        "n": len(target),
        "spearman": _spearman(target, realised),
        "mean_absolute_error": rounded(np.mean(errors)),
        "targets": bins,
    }


def per_class(
    target: np.ndarray, realised: np.ndarray, agrees: np.ndarray | None, label: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The same per class, hardest to steer first; classes without images are left out. error: mean of realised minus
    target."""
    rows = []
    for known in np.unique(label):
        mine = label == known
        rows.append(
            {
                "class": names[known],
                "n": int(mine.sum()),
                "spearman": _spearman(target[mine], realised[mine]),
                "error": rounded((realised[mine] - target[mine]).mean()),
                "label_agreement": share_kept(agrees, mine),
            }
        )
    return sorted(rows, key=lambda row: (row["spearman"] is not None, row["spearman"] or 0))


def share_kept(agrees: np.ndarray | None, mine: np.ndarray | slice = slice(None)) -> float | None:
    """Of `mine` (all, if not said), the share that keeps its label; None without a judge."""
    return None if agrees is None else rounded(agrees[mine].mean())


def label_frontier(real: tuple[np.ndarray, np.ndarray], generated: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """`frontier` and `labels_hold_until` of metrics.json, from what `frontier` takes."""
    rows = frontier(real, generated)
    held = {kind: labels_hold_until(rows, kind) for kind in ("real", "generated")}
    return {"frontier": rows, "labels_hold_until": held}


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
            inside = (s >= low) & ((s < high) | (high == edges[-1]))  # the last bin has its upper end, too
            row[f"{name}_agreement"] = rounded(agrees[inside].mean()) if inside.any() else None
            row[f"{name}_n"] = int(inside.sum())
        rows.append(row)
    return rows


def labels_hold_until(rows: Iterable[Mapping[str, Any]], kind: str) -> float | None:
    """Upper edge of the last bin of `frontier` before `kind` ("real", "generated") first falls below `LABELS_HOLD`;
    None = never held. Bins of fewer than `TELLING` images are taken together with the next: alone they say nothing."""
    edge, images, kept = None, 0, 0.0
    for row in rows:
        images += row[f"{kind}_n"]
        # a bin without images has None
        kept += row[f"{kind}_n"] * (row[f"{kind}_agreement"] or 0)
        if images < TELLING:
            continue
        if kept / images < LABELS_HOLD:
            break
        edge, images, kept = row["bin"][1], 0, 0.0
    return edge


def per_source(
    target: np.ndarray, realised: np.ndarray, agrees: np.ndarray | None, sources: Sequence[str | None]
) -> list[dict[str, Any]]:
    """The same per source of prompts, labels that break most often first; empty where all prompts are of one source.
    error: mean of realised minus target. Images whose difficulty is not known are left out."""
    named = np.array([source or "captions" for source in sources], object)
    known = np.isfinite(realised) if len(named) else np.zeros(0, bool)
    rows = []
    for source in sorted(set(named[known])):
        mine = known & (named == source)
        rows.append(
            {
                "source": source,
                "n": int(mine.sum()),
                "target": rounded(target[mine].mean()),
                "realised": rounded(realised[mine].mean()),
                "error": rounded((realised[mine] - target[mine]).mean()),
                "spearman": _spearman(target[mine], realised[mine]),
                "agreement": share_kept(agrees, mine),
            }
        )
    return sorted(rows, key=lambda row: row["agreement"] or 0) if len(rows) > 1 else []


def density(difficulty: np.ndarray) -> dict[str, Any]:
    """Kernel density of difficulties in [0, 1] on `GRID`, reflected at both ends so that no mass leaves (the paper's
    Figure 2). curve is None when all values are the same."""
    known = np.asarray(difficulty, float)[np.isfinite(difficulty)]
    about = {"n": len(known), "mean": rounded(known.mean()) if len(known) else None, "curve": None}
    if len(known) > 1 and np.ptp(known) > 0:
        width = stats.gaussian_kde(known).factor
        mirrored = np.concatenate([known, -known, 2 - known])
        scale = known.std(ddof=1) / mirrored.std(ddof=1)  # so that the kernel is as wide as without the mirror images
        # 3: the mass of all three copies is to lie in [0, 1]
        about["curve"] = [rounded(v) for v in 3 * stats.gaussian_kde(mirrored, width * scale)(GRID)]
    return about


def _grouped(target: np.ndarray) -> np.ndarray:
    if len(np.unique(target)) <= MOST_TARGETS:
        return target
    # in float32, 0.7 is a little less than that; 1 is of the last tenth
    return np.minimum(np.floor(np.asarray(target, float) * 10 + 1e-6), 9)


def _spearman(target: np.ndarray, realised: np.ndarray) -> float | None:
    """None for a single target or a single result: there is no order to agree on."""
    # two images always agree perfectly, or not at all
    if len(target) < 3 or np.ptp(target) == 0 or np.ptp(realised) == 0:
        return None
    return rounded(stats.spearmanr(target, realised)[0])


def _target_bin(target: float, realised: np.ndarray, kept: float | None) -> dict[str, Any]:
    return {
        "target": rounded(target, 3),
        "realised_mean": rounded(realised.mean()),
        "realised_std": rounded(realised.std()),
        "label_agreement": kept,
        "n": len(realised),
    }
