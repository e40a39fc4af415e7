"""Which strength of fine-tuning is taken: copies and lost labels rule a point out, coverage decides."""

from __future__ import annotations

import numpy as np
import pytest

from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.strength import FEWEST, Drawn, Point, RealFeatures, choose, measure_point

RNG = np.random.default_rng(0)
REAL = RealFeatures(RNG.normal(size=(40, 6)), RNG.normal(size=(120, 6)))
POINTS = [Point(steps, 1.0, 1.5, 3.0) for steps in (20, 100, 500)]


def drawn(features: np.ndarray, *, agrees: float = 1.0, follows: float = 1.0) -> Drawn:
    requested = np.linspace(0, 1, len(features))
    realised = follows * requested + (1 - follows) * RNG.permutation(requested)
    kept = np.arange(len(features)) < agrees * len(features)
    return Drawn(features, requested, realised, kept, (0.1, 0.8), 0.02, 3.0)


def test_copies_of_training_images_are_seen_and_cover_less_than_new_images_do() -> None:
    copies = np.repeat(REAL.train[:10], 10, axis=0) + RNG.normal(0, 1e-3, (100, 6))
    copied, new = (measure_point(drawn(x), REAL) for x in (copies, RNG.normal(size=(100, 6))))
    assert copied["copies"] == 1 and new["copies"] < 0.1
    assert copied["coverage"] < 0.5 * new["coverage"]
    assert copied["correlation"] == 1 and new["seconds_per_image"] == 0.03


def test_unseen_real_images_count_as_copies_as_rarely_as_the_limit_says() -> None:
    assert measure_point(drawn(REAL.unseen), REAL)["copies"] == pytest.approx(0.01, abs=0.01)


def row(coverage: float, copies: float = 0.0, agreement: float = 0.9, seconds: float = 1.0) -> dict[str, float]:
    return {"coverage": coverage, "copies": copies, "agreement": agreement, "seconds_per_image": seconds}


def test_the_point_that_covers_most_is_taken_and_the_cheaper_of_equals() -> None:
    choice = choose(POINTS, [row(0.4), row(0.7), row(0.5)], 0.05, 0.5)
    assert (choice.index, choice.usable) == (1, True) and "100 steps" in choice.reason and "70%" in choice.reason
    assert choose(POINTS, [row(0.7), row(0.7, seconds=0.5), row(0.5)], 0.05, 0.5).index == 1


def test_a_point_that_copies_or_loses_its_labels_is_not_taken() -> None:
    table = [row(0.4), row(0.9, copies=0.2), row(0.8, agreement=0.3)]
    assert choose(POINTS, table, 0.05, 0.5).index == 0


def test_where_every_point_copies_the_least_bad_is_taken_and_said() -> None:
    choice = choose(POINTS, [row(0.9, copies=0.5), row(0.2, copies=0.3), row(0.9, copies=0.9)], 0.05, 0.5)
    assert (choice.index, choice.usable) == (1, False) and "copies least (30.0%)" in choice.reason


def test_too_few_unseen_images_name_the_remedy() -> None:
    with pytest.raises(UsageError, match=f"takes {FEWEST}") as caught:
        RealFeatures(np.zeros((5, 2)), np.zeros((FEWEST - 1, 2)))
    assert "--strength" in caught.value.hint
