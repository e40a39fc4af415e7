from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.errors import UsageError
from dcdm_cli.generation.targets import Target, parse_target

RNG = np.random.default_rng
REAL = np.array([0.1, 0.2, 0.9, np.nan], np.float32)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("normal:0.5,0.1", Target("normal", (0.5, 0.1))),
        ("uniform: .2, 0.6", Target("uniform", (0.2, 0.6))),
        ("fixed:0", Target("fixed", (0.0,))),
        ("0.4", Target("fixed", (0.4,))),
        ("real", Target("real", ())),
    ],
)
def test_what_users_write_is_understood(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "hard", "normal:0.5", "uniform:0.6,0.2", "fixed:1.5", "normal:0.5,0", "fixed:-1"])
def test_everything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--difficulty") as caught:
        parse_target(text)
    assert caught.value.hint


def test_the_normal_is_truncated_not_clipped() -> None:
    drawn = parse_target("normal:0.5,0.3").draw(4000, RNG(0), 0.8, REAL)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() <= 0.8
    assert ((drawn == 0) | (drawn == 0.8)).mean() < 0.01
    assert np.median(drawn) == pytest.approx(0.47, abs=0.03)


def test_the_default_has_the_papers_mean_and_spread() -> None:
    drawn = parse_target("normal:0.5,0.1").draw(4000, RNG(0), 0.8, REAL)
    assert (drawn.mean(), drawn.std()) == pytest.approx((0.5, 0.1), abs=0.01)


def test_uniform_ends_at_the_cap() -> None:
    drawn = parse_target("uniform:0.6,1").draw(1000, RNG(0), 0.8, REAL)
    assert 0.6 <= drawn.min() < 0.61 and 0.79 < drawn.max() <= 0.8


def test_real_draws_what_real_images_have_below_the_cap() -> None:
    assert set(parse_target("real").draw(100, RNG(0), 0.8, REAL).tolist()) == {np.float32(0.1), np.float32(0.2)}


@pytest.mark.parametrize("text", ["uniform:0.9,1", "fixed:0.9", "real"])
def test_a_target_above_the_cap_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"above the cap of 0\.05") as caught:
        parse_target(text).draw(3, RNG(0), 0.05, REAL)
    assert "--difficulty-cap" in caught.value.hint


@given(st.sampled_from(["normal", "uniform"]), st.floats(0, 0.6), st.floats(0.01, 1), st.integers(0, 99))
def test_draws_never_leave_the_allowed_range(kind: str, first: float, second: float, seed: int) -> None:
    if kind == "uniform" and first >= second:
        first, second = second / 2, second
    drawn = Target(kind, (first, second)).draw(50, RNG(seed), 0.7, REAL)
    assert np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= np.float32(0.7)
