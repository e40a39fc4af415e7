"""Which difficulty is worth most: the peak is found where it is, and not told where noise hides it."""

from __future__ import annotations

import numpy as np
import pytest

from dcdm_cli.evaluation import target
from dcdm_cli.evaluation.target import best_difficulty, best_of_cell

ASKED = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
CAME_OUT = (0.2, 0.32, 0.46, 0.58, 0.7, 0.8)


def worth(peak: float, noise: float, seeds: int = 8) -> np.ndarray:
    """Points lost by the square of the distance to the peak, per arm and seed."""
    rng = np.random.default_rng(3)
    return np.array([[-0.2 * (d - peak) ** 2] * seeds for d in CAME_OUT]) + rng.normal(0, noise, (len(CAME_OUT), seeds))


@pytest.mark.parametrize("peak", [0.35, 0.5, 0.65])
def test_the_peak_of_what_came_out_is_found_and_what_to_ask_for_again(peak: float) -> None:
    found = best_difficulty(ASKED, CAME_OUT, worth(peak, 0.002))
    assert found is not None and found.told
    assert found.difficulty == pytest.approx(peak, abs=0.04)
    assert found.interval[0] <= found.difficulty <= found.interval[1]
    assert found.asked == pytest.approx(np.interp(found.difficulty, CAME_OUT, ASKED), abs=0.01)


def test_arms_that_are_worth_the_same_are_rarely_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "RESAMPLES", 200)
    noise = [np.random.default_rng(seed).normal(0, 0.02, (len(CAME_OUT), 8)) for seed in range(40)]
    found = [target.best_difficulty(ASKED, CAME_OUT, each) for each in noise]
    assert sum(best is not None and best.told for best in found) <= 4


def test_a_slope_peaks_at_its_end() -> None:
    found = best_difficulty(ASKED, CAME_OUT, worth(1.5, 0.001))
    assert found is not None and found.difficulty == CAME_OUT[-1]


@pytest.mark.parametrize("arms, seeds", [(3, 8), (6, 3)])
def test_too_little_says_nothing(arms: int, seeds: int) -> None:
    assert best_difficulty(ASKED[:arms], CAME_OUT[:arms], worth(0.5, 0.002, seeds)[:arms]) is None


def test_arms_that_came_out_alike_say_nothing() -> None:
    assert best_difficulty(ASKED, [0.5] * 6, worth(0.5, 0.002)) is None


def test_arms_are_compared_with_the_baseline_seed_by_seed() -> None:
    """What all arms of a seed have in common, the luck of its classifier, does not count."""
    luck = np.random.default_rng(0).normal(0, 0.1, 8)
    arms = [{"name": "real", "accuracy": (0.8 + luck).tolist(), "difficulty": None}]
    for asked, came_out, row in zip(ASKED, CAME_OUT, worth(0.5, 0.002), strict=True):
        values = (0.8 + luck + row).tolist()
        arms.append(
            {
                "name": f"{asked}",
                "accuracy": values,
                "difficulty": f"normal:{asked},0.05",
                "set_realised_mean": came_out,
            }
        )
    found = best_of_cell({"arms": arms}, "real")
    assert found is not None and found.told and found.difficulty == pytest.approx(0.5, abs=0.04)
    assert best_of_cell({"arms": arms[1:]}, "real") is None
