"""Rejection sampling: closer to the target, the same whatever the batch, and off where it is not wanted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.difficulty.verdict import Measure, Verdict, with_check
from dcdm_cli.generation.engine import Engine, open_engine, render
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.render import render_close
from dcdm_cli.run.progress import Job

from .conftest import config, plan
from .fakes import fake_measure as brightness
from .test_engine import Elementwise, with_denoiser

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
            assert batch.verdict.shows is None
            for said, found in zip(batch.verdict[:3], expected[:3], strict=True):
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
        difficulty, predicted = brightness(images, labels)[:2]
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


def odd(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label check that half of all draws pass, whatever their difficulty."""
    return images.sum((1, 2, 3), dtype=np.int64) % 2 == 1


def checked_draws(engine: Engine, the_plan: Plan, measure: Measure | None, **changes: object) -> tuple[Images, dict]:
    """Images by id, and by id whether the check's verdict on them was that they show their label."""
    images: Images = {}
    shows: dict[str, bool] = {}
    for batch in render_close(with_settings(engine, **changes), the_plan.rows(), Job(), with_check(measure, odd)):
        assert batch.verdict is not None and batch.verdict.shows is not None
        for row, image, shown in zip(batch.rows, batch.images, batch.verdict.shows.tolist(), strict=True):
            images[row.sample_id], shows[row.sample_id] = image, shown
    return images, shows


def test_a_draw_that_does_not_show_its_label_is_drawn_again(engine: Engine, the_plan: Plan) -> None:
    first, before = checked_draws(engine, the_plan, brightness, attempts=1)
    kept, after = checked_draws(engine, the_plan, brightness, attempts=6, tolerance=1.0)
    assert 0 < sum(before.values()) < len(before), "some first draws pass, some do not"
    for name, image in kept.items():
        assert after[name] == odd(image[None], np.zeros(1))[0]
        assert np.array_equal(image, first[name]) == before[name], "one that passes within the tolerance is kept"
    assert sum(after.values()) > sum(before.values())


def test_of_draws_that_all_lost_their_label_the_closest_is_kept(engine: Engine, the_plan: Plan) -> None:
    def none(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.zeros(len(images), bool)

    never = close(with_settings(engine, attempts=4, tolerance=0.0), the_plan, with_check(brightness, none))
    unchecked = close(with_settings(engine, attempts=4, tolerance=0.0), the_plan)
    assert all(np.array_equal(never[key], unchecked[key]) for key in unchecked)


def test_no_miss_of_the_target_outweighs_a_lost_label(engine: Engine, the_plan: Plan) -> None:
    """The first draw is perfect but for its label, the second as far as a draw can be and shows it."""
    calls: list[int] = []

    def worse_and_worse(images: np.ndarray, labels: np.ndarray) -> Verdict:
        calls.append(len(images))
        later = len(calls) > 1
        rival = np.full(len(images), float(later))
        targets = np.array([row.target_difficulty for row in the_plan.rows()])
        return Verdict(np.where(later, np.nan, targets), labels, rival * 0.5, np.full(len(images), later))

    first = close(engine, the_plan)
    kept = close(with_settings(engine, attempts=2, tolerance=0.0, batch_size=12), the_plan, worse_and_worse)
    assert calls == [12, 12] and not any(np.array_equal(first[key], kept[key]) for key in first)


def test_a_label_check_chooses_without_a_scorer(engine: Engine, the_plan: Plan) -> None:
    first, before = checked_draws(engine, the_plan, None, attempts=1)
    kept, after = checked_draws(engine, the_plan, None, attempts=6, tolerance=0.0)
    assert sum(after.values()) > sum(before.values())
    assert all(np.array_equal(kept[name], first[name]) for name, passed in before.items() if passed)


def test_the_check_decides_which_images_are_made(adapter: Path) -> None:
    """Plans and folders of images made with and without it, or with another one, are not taken for each other."""
    made = {
        open_engine(adapter, config(check=check, check_model=model), "cpu").generator
        for check, model in ((None, "a"), (None, "b"), ("digits", "a"), ("clip", "a"), ("clip", "b"))
    }
    assert len(made) == 4


def test_without_a_scorer_the_first_draw_is_kept(engine: Engine, the_plan: Plan) -> None:
    plain = {
        r.sample_id: i
        for rows, images in render(engine, the_plan.rows(), Job())
        for r, i in zip(rows, images, strict=True)
    }
    kept = close(with_settings(engine, attempts=4, tolerance=0.0), the_plan, None)
    assert all(np.array_equal(plain[key], kept[key]) for key in plain)


def counted(engine: Engine, batch: int, *, fixed_batch: bool = False, most: int = 10**6, **changes: object):
    """Images by id with a denoiser of elementwise operations, equal to the bit in any batch; images per network call
    and handed-over batches."""
    denoiser = Elementwise(fixed_batch=fixed_batch, most=most)
    settings = with_settings(engine, batch_size=batch, attempts=6, tolerance=0.02, **changes)
    made = list(render_close(with_denoiser(settings, denoiser), MANY.rows(), Job(), brightness))
    assert [row.index for batch in made for row in batch.rows] == list(range(len(MANY)))  # in order, none twice
    images = {row.sample_id: image for batch in made for row, image in zip(batch.rows, batch.images, strict=True)}
    steps = settings.config.steps
    return images, [rows // 3 for rows in denoiser.batches[::steps]], made


MANY = plan((16, 16, 16))


def test_redraws_and_new_rows_share_full_batches(engine: Engine) -> None:
    _, batches, made = counted(engine, 8)
    draws = sum(batches)
    assert draws > 2 * len(MANY), "most rows are drawn more than once"
    assert batches == sorted(batches, reverse=True), "never a short batch before the last ones"
    assert batches.count(8) >= draws // 8 - 4
    assert len(made) <= len(batches)


@pytest.mark.parametrize(
    ("batch", "fixed_batch", "most"),
    [(1, False, 10**6), (5, False, 10**6), (48, False, 10**6), (8, True, 10**6), (48, True, 10**6), (16, False, 13)],
)
def test_the_same_draws_are_kept_to_the_bit_whatever_the_batches(
    engine: Engine, batch: int, fixed_batch: bool, most: int
) -> None:
    expected, _, _ = counted(engine, 8)
    found, _, _ = counted(engine, batch, fixed_batch=fixed_batch, most=most)
    assert found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


def test_batches_of_a_fixed_size_are_filled_with_draws_that_may_be_wanted(engine: Engine) -> None:
    _, one_by_one, _ = counted(engine, 64)
    _, filled, _ = counted(engine, 64, fixed_batch=True)
    assert set(filled) == {64} and len(filled) < len(one_by_one)


def test_rows_that_wait_are_bounded(engine: Engine) -> None:
    """The first row never comes close: those after it wait for its `attempts` draws, and no longer."""
    first = MANY.rows()[0]

    def stubborn(images: np.ndarray, labels: np.ndarray) -> Verdict:
        difficulty = np.full(len(images), np.nan if len(waits) < 6 else first.target_difficulty)
        waits.append(len(images))
        return Verdict(difficulty, labels, np.zeros(len(images)))

    waits: list[int] = []
    settings = with_settings(engine, batch_size=4, attempts=6, tolerance=0.5)
    made = next(render_close(with_denoiser(settings, Elementwise()), MANY.rows(), Job(), stubborn))
    assert made.rows[0] == first and len(waits) == 6 and sum(waits) == 24
