"""At what cost does one arm reach the best of another? The paper's claim: 20 % of the control's GPU-hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdm_cli.evaluation.statistics import compare


@dataclass(frozen=True)
class CurvePoint:
    """One arm at one ratio. seconds: of generating its images, on average over the seeds; None = not known."""

    ratio: float
    images: int
    accuracy: Sequence[float]
    seconds: float | None

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracy))


def crossing(
    control: Sequence[CurvePoint], ours: Sequence[CurvePoint], before: tuple[float | None, float] = (None, 0.0)
) -> dict[str, Any]:
    """The control's best point by mean accuracy, and the smallest of our points that reaches it, or None where none
    does. image_share, cost_share: of the control's images and generation time; whole_share: with what each needs before
    its first image. comparison: ours minus control, paired; both points are chosen after the fact, so that it is a
    description and not a test.

    before: seconds that the control and ours need before their first image, None = not known.
    """
    best = max(control, key=lambda point: point.mean)
    found: dict[str, Any] = {"control": _point(best), "ours": None, "image_share": None, "cost_share": None}
    found |= {"whole_share": None, "before_seconds": {"control": before[0], "ours": before[1]}}
    reaching = sorted((p for p in ours if p.mean >= best.mean), key=lambda point: point.images)
    if not reaching:
        return {**found, "comparison": None}
    first = reaching[0]
    return {
        **found,
        "ours": _point(first),
        "image_share": round(first.images / best.images, 4) if best.images else None,
        "cost_share": _share(first.seconds, best.seconds),
        "whole_share": _share(_sum(before[1], first.seconds), _sum(before[0], best.seconds)),
        "comparison": compare(first.accuracy, best.accuracy),
    }


def _share(ours: float | None, control: float | None) -> float | None:
    return round(ours / control, 4) if control and ours is not None else None


def _sum(before: float | None, seconds: float | None) -> float | None:
    return None if before is None or seconds is None else before + seconds


def _point(point: CurvePoint) -> dict[str, Any]:
    mean = round(point.mean, 6)
    return {"ratio": point.ratio, "images": point.images, "accuracy_mean": mean, "generation_seconds": point.seconds}
