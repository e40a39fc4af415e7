"""Intervals, tests and verdicts on numbers whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dcdm_cli.evaluation import statistics
from dcdm_cli.evaluation.statistics import BCA_FROM, compare, interval, paired, seeds_needed


def test_few_values_get_students_t_and_many_a_bootstrap() -> None:
    few = [0.90, 0.92, 0.91]
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert interval(few) == pytest.approx([0.91 - half, 0.91 + half], abs=1e-6)
    many = np.random.default_rng(0).exponential(size=BCA_FROM + 10)
    low, high = interval(many) or (0, 0)
    t_low, t_high = stats.t.interval(0.95, len(many) - 1, many.mean(), stats.sem(many))
    assert low < many.mean() < high and high - many.mean() > many.mean() - low  # skewed as the values are
    assert (low, high) != pytest.approx((t_low, t_high), abs=1e-3)
    assert interval(many) == interval(many)


def test_one_value_has_no_interval_and_no_spread_is_a_point() -> None:
    assert interval([0.9]) is None
    assert interval([0.25, 0.25, 0.25]) == [0.25, 0.25]


def test_a_clear_difference_is_told_and_noise_is_not() -> None:
    base = np.array([0.90, 0.91, 0.92, 0.90, 0.91, 0.93])
    better = compare(base + np.array([0.010, 0.012, 0.009, 0.011, 0.010, 0.012]), base)
    assert better["verdict"] == "better" and better["difference_mean"] == pytest.approx(0.010667, abs=1e-6)
    assert better["p_value"] == pytest.approx(2 / 2**6, abs=1e-4) and better["seeds"] == 6  # every sign is the same
    assert compare(base, base + 0.01 + np.linspace(0, 1e-3, 6))["verdict"] == "worse"
    unclear = compare(base + np.array([0.01, -0.01, 0.012, -0.009, 0.008, -0.011]), base)
    assert unclear["verdict"] == "cannot tell" and unclear["p_value"] > 0.5


def test_the_same_arm_twice_cannot_be_told_apart() -> None:
    same = compare([0.9, 0.8], [0.9, 0.8])
    assert (same["verdict"], same["p_value"], same["seeds_needed"]) == ("cannot tell", 1.0, None)
    single = compare([0.95], [0.9])
    assert single["verdict"] == "cannot tell" and single["difference_ci95"] is None and single["p_value"] is None


def test_equal_differences_of_few_seeds_are_chance() -> None:
    real = np.array([0.95, 0.96, 0.94, 0.95, 0.97, 0.96])
    few, enough = (compare(real[:n] + 0.006, real[:n]) for n in (2, 6))
    assert few["difference_ci95"] == [0.006, 0.006]
    assert (few["verdict"], few["seeds_needed"]) == ("cannot tell", 6)
    assert (enough["verdict"], enough["p_value"]) == ("better", 0.0312)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seeds", [3, 5, 6])
def test_a_verdict_takes_the_permutation_test_as_well(seeds: int, sign: int) -> None:
    """Three seeds reach p = 0.25 at best, five 0.0625: their interval may lie on one side, and only points there."""
    real = np.linspace(0.90, 0.92, seeds)
    found = compare(real + sign * (0.01 + 1e-3 * (np.arange(seeds) % 2)), real)
    low, high = found["difference_ci95"]
    assert low * high > 0 and found["p_value"] == pytest.approx(2 / 2**seeds, abs=1e-4)
    word = "better" if sign > 0 else "worse"
    assert found["verdict"] == (word if seeds == 6 else f"points to {word}")
    assert found["seeds_needed"] == 6


def test_an_interval_on_one_side_is_not_enough_at_many_seeds_either() -> None:
    """Where the two disagree nothing is decided: what counts is the stricter one."""
    assert statistics._verdict([0.001, 0.02], 0.06) == "points to better"
    assert statistics._verdict([-0.02, -0.001], 0.05) == "worse"
    assert statistics._verdict([-0.001, 0.02], 0.04) == "cannot tell"


def test_where_less_is_better_the_words_change_and_the_numbers_do_not() -> None:
    less, more = np.linspace(0.1, 0.2, 8), np.linspace(0.3, 0.41, 8)
    plain, turned = compare(less, more), compare(less, more, less_is_better=True)
    assert (plain.pop("verdict"), turned.pop("verdict")) == ("worse", "better") and plain == turned
    assert compare(more[:3], less[:3], less_is_better=True)["verdict"] == "points to worse"


def test_the_seeds_that_would_tell_do_tell() -> None:
    rng = np.random.default_rng(1)
    seen = rng.normal(0.004, 0.01, 8)
    needed = seeds_needed(seen)
    assert needed is not None
    draws = rng.normal(seen.mean(), seen.std(ddof=1), (2000, needed))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert 0.76 < found < 0.86
    assert seeds_needed([0.01, 0.01]) == 6 and seeds_needed([1e-9, -1e-9 + 1e-12]) is None


def test_pairs_are_with_the_baseline_and_the_focus_once_each() -> None:
    values = {"real": [0.9, 0.91], "plain": [0.9, 0.92], "dcdm": [0.95, 0.94]}
    pairs = [(row["arm"], row["against"]) for row in paired(values, "real", "dcdm")]
    assert pairs == [("plain", "real"), ("dcdm", "real"), ("dcdm", "plain")]
    assert [(r["arm"], r["against"]) for r in paired(values, "dcdm", "dcdm")] == [("real", "dcdm"), ("plain", "dcdm")]
    assert paired(values, "gone", "gone") == []
