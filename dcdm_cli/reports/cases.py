"""Cases in which it was measured what control of difficulty adds to plain LoRA at the same number of images.

Not from the paper. The list is written by benchmarks/where_control_pays.py from committed results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class MeasuredCase:
    """real: images in the training set. ratio: generated images per real one. difference, low, high: points of accuracy
    in 0 to 1 against plain LoRA's images and its 95 % interval. verdict: as comparisons say it."""

    data: str
    real: int
    ratio: float
    strength: str
    seeds: int
    difference: float
    low: float
    high: float
    verdict: str

    def told(self) -> str:
        found = f"{100 * self.difference:+.1f} points [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return (
            f"{self.data}, {self.real:,} real images, {self.ratio:g} generated per real one, {self.strength}: {found}"
        )


@cache
def measured_cases() -> tuple[MeasuredCase, ...]:
    text = (resources.files("dcdm_cli.reports") / "cases.json").read_text("utf-8")
    return tuple(MeasuredCase(**row) for row in json.loads(text))


def nearest_case(real: int, ratio: float, cases: Sequence[MeasuredCase]) -> MeasuredCase:
    """The most alike by number of real images, then by ratio, by logarithms; of equals the one with most seeds."""

    def apart(case: MeasuredCase) -> tuple[float, float, int]:
        return abs(math.log(case.real / real)), abs(math.log(case.ratio / ratio)), -case.seeds

    return min(cases, key=apart)
