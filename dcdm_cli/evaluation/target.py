"""Which difficulty is worth most: a curve through what sets of different difficulty were worth, and where it peaks.

Not from the paper, which takes N(0.5, 0.1) for every data set. Worth is the accuracy of a classifier trained with the
set, minus that of the baseline with the same seed, on validation images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcdm_cli.generation.targets import kind_and_numbers

FEWEST_ARMS, FEWEST_SEEDS = 4, 4  # below which a curve of three parameters says nothing
RESAMPLES = 2000
GRID = 201  # places between the easiest and the hardest arm
TOLD = 0.6  # share of the range of arms that the interval may take up at most


@dataclass(frozen=True)
class BestDifficulty:
    """difficulty: where the curve peaks, of the difficulties that came out; interval: 95 %, seeds drawn again; low,
    high: mean difficulties of the easiest and the hardest arm; p_value: that a curve so bent comes from
    arms that are worth the same (permutation of the arms within seeds); told: neither that nor the interval leaves room
    for chance; asked: the target that arms near the peak were asked for, which is what to ask for again."""

    difficulty: float
    interval: tuple[float, float]
    low: float
    high: float
    p_value: float
    told: bool
    asked: float

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"interval": list(self.interval)}


def best_difficulty(asked: Sequence[float], realised: Sequence[float], worth: np.ndarray) -> BestDifficulty | None:
    """asked, realised: mean difficulty per arm; worth float [arms, seeds]. None with too few arms or seeds, or where
    all arms came out alike."""
    x, worth = np.asarray(realised, float), np.asarray(worth, float)
    # 0.05: through arms that came out alike a parabola bends as it likes
    if len(x) < FEWEST_ARMS or worth.shape[1] < FEWEST_SEEDS or np.ptp(x) < 0.05:
        return None
    grid, rng = np.linspace(x.min(), x.max(), GRID), np.random.default_rng(0)
    draws = rng.integers(0, worth.shape[1], (RESAMPLES, worth.shape[1]))
    peaks = np.array([_peak(grid, x, worth[:, draw].mean(1)) for draw in draws])
    low, high = np.quantile(peaks, [0.025, 0.975])
    best = _peak(grid, x, worth.mean(1))
    order = np.argsort(x)
    again = float(np.interp(best, x[order], np.asarray(asked, float)[order]))
    p_value = _by_chance(grid, x, worth, rng)
    told = bool(high - low <= TOLD * np.ptp(x)) and p_value <= 0.05
    bounds = (round(float(low), 3), round(float(high), 3))
    ends = round(float(x.min()), 3), round(float(x.max()), 3)
    return BestDifficulty(round(best, 3), bounds, *ends, round(p_value, 4), told, round(again, 3))


def _by_chance(grid: np.ndarray, x: np.ndarray, worth: np.ndarray, rng: np.random.Generator) -> float:
    """Share of dealings of the arms, within each seed, whose curve rises as much as this one from its lowest place."""
    seen = _rise(grid, x, worth.mean(1))
    dealt = [_rise(grid, x, rng.permuted(worth, axis=0).mean(1)) for _ in range(RESAMPLES - 1)]
    # 1: what was seen is one of the dealings, so that p is never 0
    return (1 + sum(rise >= seen for rise in dealt)) / RESAMPLES


def _rise(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.ptp(np.polyval(np.polyfit(x, y, 2), grid)))


def _peak(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Of the parabola nearest to the points, within their range."""
    return float(grid[np.argmax(np.polyval(np.polyfit(x, y, 2), grid))])


def best_of_cell(cell: Mapping[str, Any], baseline: str) -> BestDifficulty | None:
    """From a cell of an experiment's document: its arms that name a mean difficulty."""
    arms = {arm["name"]: arm for arm in cell["arms"]}
    swept = [arm for arm in cell["arms"] if _mean_asked(arm) is not None and arm.get("set_realised_mean") is not None]
    if baseline not in arms or not swept or any(arm["accuracy"] is None for arm in (*swept, arms[baseline])):
        return None
    worth = np.array([arm["accuracy"] for arm in swept]) - np.array(arms[baseline]["accuracy"])
    asked = [_mean_asked(arm) or 0.0 for arm in swept]
    return best_difficulty(asked, [arm["set_realised_mean"] for arm in swept], worth)


def _mean_asked(arm: Mapping[str, Any]) -> float | None:
    kind, numbers = kind_and_numbers(str(arm.get("difficulty") or ""))
    return float(numbers[0]) if kind == "normal" else None
