"""Rejection sampling: closer to the target, the same whatever the batch, and off where it is not wanted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dcdm_cli.difficulty.verdict import Verdict
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.selection import render_close
from dcdm_cli.run.progress import Job

from .conftest import config, plan
from .fakes import fake_measure as brightness

Images = dict[str, np.ndarray]


def with_settings(engine: Engine, **changes: object) -> Engine:
    return dataclasses.replace(engine, config=config(**changes))


def close(engine: Engine, the_plan: Plan, measure=brightness) -> Images:
    batches = render_close(engine, the_plan.rows(), Job(), measure)
    return {row.sample_id: image for batch in batches for row, image in zip(batch.rows, batch.images, strict=True)}


def misses(images: Images, the_plan: Plan) -> np.ndarray:
    return np.array(
        [abs(brightness(images[r.sample_id][None], r.label)[0][0] - r.target_difficulty) for r in the_plan.rows()]
    )


@pytest.fixture
def the_plan(engine: Engine) -> Plan:
    return plan((4, 4, 4), engine.generator)


def test_more_draws_come_closer_and_no_image_gets_worse(engine: Engine, the_plan: Plan) -> None:
    one, four = (close(with_settings(engine, attempts=n, tolerance=0.0), the_plan) for n in (1, 4))
    before, after = misses(one, the_plan), misses(four, the_plan)
    assert (after <= before + 1e-6).all() and after.mean() < 0.9 * before.mean()


def test_what_is_said_of_an_image_is_said_of_the_draw_that_was_kept(engine: Engine, the_plan: Plan) -> None:
    for attempts in (1, 4):
        for batch in render_close(
            with_settings(engine, attempts=attempts, tolerance=0.0), the_plan.rows(), Job(), brightness
        ):
            expected = brightness(batch.images, np.array([row.label for row in batch.rows]))
            assert batch.verdict is not None
            for said, found in zip(batch.verdict, expected, strict=True):
                np.testing.assert_allclose(said, found)


def test_an_image_within_the_tolerance_keeps_its_first_draw(engine: Engine, the_plan: Plan) -> None:
    first = close(engine, the_plan)
    kept = close(with_settings(engine, attempts=4, tolerance=1.0), the_plan)
    assert all(np.array_equal(first[key], kept[key]) for key in first)


def test_the_batch_does_not_matter(engine: Engine, the_plan: Plan) -> None:
    small, large = (close(with_settings(engine, attempts=3, tolerance=0.0, batch_size=n), the_plan) for n in (2, 12))
    assert all(np.abs(small[key].astype(int) - large[key]).max() <= 2 for key in small)


def test_one_strong_rival_counts_as_a_miss(engine: Engine, the_plan: Plan) -> None:
    """The difficulty of every image's first draw is the pull of a single class, that of later ones is not: one of those
    is kept."""
    seen: list[int] = []

    def first_looks_like_another(images: np.ndarray, labels: np.ndarray) -> Verdict:
        seen.append(len(images))
        difficulty, predicted, _ = brightness(images, labels)
        return Verdict(difficulty, predicted, difficulty / 2 + (0.5 if len(seen) % 2 else 0))

    first = close(engine, the_plan)
    kept = close(with_settings(engine, attempts=2, tolerance=0.09, batch_size=12), the_plan, first_looks_like_another)
    assert seen == [12, 12]
    assert not any(np.array_equal(first[key], kept[key]) for key in first)


def test_scores_that_are_not_finite_are_drawn_again(engine: Engine, the_plan: Plan) -> None:
    calls: list[int] = []

    def broken(images: np.ndarray, labels: np.ndarray) -> Verdict:
        calls.append(len(images))
        return Verdict(np.full(len(images), np.nan), np.full(len(images), -1), np.full(len(images), np.nan))

    close(with_settings(engine, attempts=3, tolerance=0.2, batch_size=12), the_plan, broken)
    assert calls == [12, 12, 12]


def test_without_a_scorer_the_first_draw_is_kept(engine: Engine, the_plan: Plan) -> None:
    plain = {
        r.sample_id: i
        for rows, images in render(engine, the_plan.rows(), Job())
        for r, i in zip(rows, images, strict=True)
    }
    kept = close(with_settings(engine, attempts=4, tolerance=0.0), the_plan, None)
    assert all(np.array_equal(plain[key], kept[key]) for key in plain)
