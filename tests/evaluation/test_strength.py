"""Which strength of fine-tuning is taken: copies and lost labels rule a point out, hard and right decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.strength import (
    FEWEST,
    Drawn,
    Point,
    RealFeatures,
    choose,
    measure_point,
    steers,
    without_idle_guidance,
)

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 2


def of_class(label: np.ndarray) -> np.ndarray:
    """float32 [N, 6]: two classes, 4 standard deviations apart in the first feature."""
    features = RNG.normal(size=(len(label), 6)).astype(np.float32)
    features[:, 0] += 4 * label
    return features


REAL = RealFeatures(of_class(np.arange(40) % 2), of_class(LABELS), LABELS, 2)
POINTS = [Point(steps, 1.0, 1.5, 3.0) for steps in (20, 100, 500)]


def drawn(features: np.ndarray, *, agrees: float = 1.0, follows: float = 1.0) -> Drawn:
    requested = np.linspace(0, 1, len(features))
    realised = follows * requested + (1 - follows) * RNG.permutation(requested)
    kept = np.arange(len(features)) < agrees * len(features)
    label = (features[:, 0] > 2).astype(np.int64)
    return Drawn(features.astype(np.float32), label, requested, realised, kept, (0.1, 0.8), 0.02, 3.0)


def test_copies_of_training_images_are_seen_and_cover_less_than_new_images_do() -> None:
    copies = np.repeat(REAL.train[:10], 10, axis=0) + RNG.normal(0, 1e-3, (100, 6))
    copied, new = (measure_point(drawn(x), REAL) for x in (copies, of_class(np.arange(100) % 2)))
    assert copied["copies"] == 1 and new["copies"] < 0.1
    assert copied["coverage"] < 0.5 * new["coverage"]
    assert copied["correlation"] == 1 and new["seconds_per_image"] == 0.03


def test_unseen_real_images_count_as_copies_as_rarely_as_the_limit_says() -> None:
    assert measure_point(drawn(REAL.unseen), REAL)["copies"] == pytest.approx(0.01, abs=0.01)


def test_worth_is_difficulty_where_the_label_shows_and_nothing_where_it_does_not() -> None:
    made = drawn(of_class(np.arange(100) % 2))
    right, wrong = measure_point(made, REAL), measure_point(replace(made, label=1 - made.label), REAL)
    assert right["labels"] > 0.9 and right["worth"] == pytest.approx(right["difficulty"], abs=0.06)
    assert wrong["labels"] < 0.1 and wrong["worth"] < 0.06 and wrong["difficulty"] == right["difficulty"]


def test_what_could_not_be_scored_is_worth_nothing() -> None:
    made = drawn(of_class(np.arange(100) % 2))
    assert measure_point(replace(made, realised=np.full(100, np.nan)), REAL)["worth"] == 0


def row(worth: float, copies: float = 0.0, labels: float = 0.9, seconds: float = 1.0) -> dict[str, float]:
    return {"worth": worth, "difficulty": 0.7, "copies": copies, "labels": labels, "seconds_per_image": seconds}


def test_the_point_of_the_most_worth_is_taken_and_the_cheaper_of_equals() -> None:
    choice = choose(POINTS, [row(0.4), row(0.7), row(0.5)], 0.05, 0.5)
    assert (choice.index, choice.usable) == (1, True) and "100 steps" in choice.reason and "0.70 hard" in choice.reason
    assert choose(POINTS, [row(0.7), row(0.7, seconds=0.5), row(0.5)], 0.05, 0.5).index == 1


def test_a_point_that_copies_or_loses_its_labels_is_not_taken() -> None:
    table = [row(0.4), row(0.9, copies=0.2), row(0.8, labels=0.3)]
    assert choose(POINTS, table, 0.05, 0.5).index == 0


def test_where_every_point_copies_the_least_bad_is_taken_and_said() -> None:
    choice = choose(POINTS, [row(0.9, copies=0.5), row(0.2, copies=0.3), row(0.9, copies=0.9)], 0.05, 0.5)
    assert (choice.index, choice.usable) == (1, False) and "copies least (30.0%)" in choice.reason


def test_too_few_unseen_images_name_the_remedy() -> None:
    with pytest.raises(UsageError, match=f"takes {FEWEST}") as caught:
        RealFeatures(np.zeros((5, 2)), np.zeros((FEWEST - 1, 2)), np.zeros(FEWEST - 1, int), 2)
    assert "--strength" in caught.value.hint


@pytest.mark.parametrize(("correlation", "images", "kept"), [(0.1, 80, False), (0.3, 80, True), (0.3, 20, False)])
def test_guidance_by_difficulty_stays_where_it_steers(correlation: float, images: int, kept: bool) -> None:
    point = Point(60, 0.6, 1.5, 3.0)
    found = without_idle_guidance(point, {"correlation": correlation}, images)
    assert found == (point if kept else Point(60, 0.6, 1.5, 1.5))
    assert steers(1.0, 10) and not steers(-0.5, 1000)
