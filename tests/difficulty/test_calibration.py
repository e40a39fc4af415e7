"""What comes out is measured, fitted and inverted, class by class."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.difficulty.calibration import Calibration, fit_calibration, load_calibration, save_calibration
from dcdm_cli.errors import MismatchError, NumericalError

GRID = np.linspace(0, 1, 9)


def probes(*curves: object, noise: float = 0.0, each: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """requested, realised, label for one function per class."""
    rng = np.random.default_rng(0)
    asked = np.tile(np.repeat(GRID, each), len(curves))
    label = np.repeat(np.arange(len(curves)), len(GRID) * each)
    clean = np.concatenate([curve(np.repeat(GRID, each)) for curve in curves])  # type: ignore[operator]
    return asked, np.clip(clean + noise * rng.normal(size=len(asked)), 0, 1), label


def fit(*curves: object, **options: float) -> Calibration:
    asked, realised, label = probes(*curves, **options)  # type: ignore[arg-type]
    return fit_calibration(asked, realised, realised < 0.5, label, len(curves), {"steps": 3})


def half(s: np.ndarray) -> np.ndarray:
    return 0.1 + s / 2


def steep(s: np.ndarray) -> np.ndarray:
    return s**0.5


def test_asking_for_what_calibration_says_yields_the_target() -> None:
    made = fit(half, steep, noise=0.05, each=60)
    target = np.array([0.2, 0.4, 0.55, 0.3, 0.5, 0.9])
    label = np.array([0, 0, 0, 1, 1, 1])
    requested, outside = made.request_for(target, label)
    assert requested.dtype == np.float32 and not outside.any()
    realised = np.where(label == 0, half(requested), steep(requested))
    assert np.abs(realised - target).max() < 0.06


def test_targets_outside_a_classs_reach_get_the_nearest_end() -> None:
    requested, outside = fit(half, steep).request_for(np.array([0.02, 0.9, 0.02, 0.9]), np.array([0, 0, 1, 1]))
    assert outside.tolist() == [True, True, True, False] or outside.tolist() == [True, True, False, False]
    assert requested[:2].tolist() == [0.0, 1.0]


def test_what_is_reachable_is_said_for_the_mean_over_classes() -> None:
    low, high = fit(half, half).reachable
    assert low == pytest.approx(0.05, abs=0.01) and high == pytest.approx(0.65, abs=0.01)


def test_a_class_without_probes_gets_the_curve_of_all() -> None:
    asked, realised, label = probes(half)
    made = fit_calibration(asked, realised, realised < 1, label, 2, {})
    assert made.classes[1] == pytest.approx(made.fitted)
    assert made.classes[0] == pytest.approx(made.fitted, abs=1e-6)


def test_few_images_of_a_class_count_little() -> None:
    asked, realised, label = probes(half, steep, each=1)
    lone = fit_calibration(asked, realised, realised < 1, label, 2, {})
    pooled, mine = np.array(lone.fitted), np.array(lone.classes[1])
    assert np.abs(mine - pooled).max() < np.abs(steep(GRID) - pooled).max() / 2


def test_the_record_keeps_raw_means_agreement_and_counts() -> None:
    made = fit(half, steep)
    assert made.images == 360 and len(made.requested) == 9
    assert made.realised[0] == pytest.approx((0.1 + 0) / 2) and made.agreement[0] == 1.0
    assert made.agreement[-1] == 0.0


def test_no_control_is_an_error_not_a_division() -> None:
    with pytest.raises(NumericalError, match="does not rise with the request") as caught:
        fit(lambda s: 0.5 - 0.3 * s)
    assert "--steps" in caught.value.hint


def test_scores_that_are_not_finite_are_an_error() -> None:
    asked, realised, label = probes(half)
    realised[3] = np.nan
    with pytest.raises(NumericalError, match="not finite"):
        fit_calibration(asked, realised, realised < 1, label, 1, {})


@given(st.integers(0, 2**32 - 1))
def test_requests_rise_with_targets_and_stay_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked, label = np.tile(np.repeat(GRID, 4), 2), np.repeat([0, 1], 36)
    realised = np.clip(asked * rng.uniform(0.1, 1) + 0.2 * rng.random(len(asked)), 0, 1)
    made = fit_calibration(asked, realised, realised < 1, label, 2, {})
    for c in (0, 1):
        requested, _ = made.request_for(np.linspace(0, 1, 50), np.full(50, c))
        assert (np.diff(requested) >= 0).all() and requested.min() >= 0 and requested.max() <= 1


def test_it_survives_the_disk_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    assert load_calibration(file) is None
    made = fit(half, steep)
    save_calibration(made, file)
    assert load_calibration(file) == made
    document = json.loads(file.read_text())
    del document["classes"]
    file.write_text(json.dumps(document))
    with pytest.raises(MismatchError, match=r"calibration\.json is damaged"):
        load_calibration(file)


def test_more_draws_reach_further() -> None:
    once = fit(half, half, noise=0.1, each=60)
    often = dataclasses.replace(once, attempts=8)
    assert often.reachable[0] < once.reachable[0] - 0.03 and often.reachable[1] > once.reachable[1] + 0.05
    target = np.array([0.7])
    assert once.request_for(target, np.array([0]))[1].item() and not often.request_for(target, np.array([0]))[1].item()


def test_what_draws_are_expected_to_reach_is_what_they_reach() -> None:
    made = dataclasses.replace(fit(half, half, noise=0.1, each=200), attempts=4)
    rng = np.random.default_rng(5)
    for wanted in (0.1, 0.4, 0.7):
        request = made.request_for(np.array([wanted]), np.array([0]))[0][0]
        draws = half(request) + 0.1 * rng.normal(size=(4000, 4))
        closest = np.take_along_axis(draws, np.abs(draws - wanted).argmin(1)[:, None], axis=1)
        assert made.expected(np.array([wanted]), 0)[0] == pytest.approx(closest.mean(), abs=0.02)
