from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from dcdm_cli.evaluation.adherence import Agreement, adherence, density, frontier, labels_hold_until, per_class

TARGET = np.repeat(np.float32([0.1, 0.5, 0.7]), 4)


def test_perfect_control() -> None:
    made = adherence(TARGET, TARGET.astype(float), np.ones(12, bool))
    assert made["n"] == 12 and made["spearman"] == 1.0 and made["mean_absolute_error"] == 0.0
    assert [t["target"] for t in made["targets"]] == [0.1, 0.5, 0.7]
    assert all(t["label_agreement"] == 1.0 and t["n"] == 4 and t["realised_std"] == 0.0 for t in made["targets"])


def test_no_control() -> None:
    realised = np.tile([0.2, 0.4, 0.2, 0.4], 3)
    made = adherence(TARGET, realised, np.tile([True, False], 6))
    assert abs(made["spearman"]) < 1e-6
    assert made["mean_absolute_error"] == pytest.approx((0.2 + 0.2 + 0.4) / 3, abs=1e-4)
    assert [t["realised_mean"] for t in made["targets"]] == [0.3] * 3
    assert [t["realised_std"] for t in made["targets"]] == [0.1] * 3
    assert [t["label_agreement"] for t in made["targets"]] == [0.5] * 3


def test_one_target_has_no_rank_correlation() -> None:
    assert adherence(TARGET[:4], np.random.default_rng(0).random(4), np.ones(4, bool))["spearman"] is None


def test_the_frontier_counts_each_image_once_ends_included() -> None:
    s, agrees = np.array([0.0, 0.05, 0.1, 0.45, 0.99, 1.0]), np.array([1, 0, 1, 1, 0, 0], bool)
    rows = frontier((s, agrees), (s[:0], agrees[:0]))
    assert [row["real_n"] for row in rows] == [2, 1, 0, 0, 1, 0, 0, 0, 0, 2]
    assert rows[0]["bin"] == [0.0, 0.1] and rows[0]["real_agreement"] == 0.5
    assert rows[2]["real_agreement"] is None and rows[9]["real_agreement"] == 0.0
    assert all(row["generated_n"] == 0 and row["generated_agreement"] is None for row in rows)


def test_drawn_targets_are_grouped_into_tenths() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(0.0, 0.8, 2000).astype(np.float32)
    made = adherence(target, target + 0.1, np.ones(2000, bool))
    assert [t["target"] for t in made["targets"]] == pytest.approx([0.05 + 0.1 * i for i in range(8)], abs=0.01)
    assert made["spearman"] == 1.0 and made["mean_absolute_error"] == pytest.approx(0.1, abs=1e-3)


def test_classes_that_are_hard_to_steer_come_first() -> None:
    target, label = np.tile([0.1, 0.3, 0.5, 0.7], 20), np.repeat([0, 2], 40)
    realised = np.where(label == 0, target, 0.8 - target) + np.linspace(0, 1e-3, 80)
    rows = per_class(target, realised, label == 0, label, ["easy", "none", "stubborn"])
    assert [row["class"] for row in rows] == ["stubborn", "easy"]
    assert rows[0]["spearman"] < -0.9 and rows[1]["spearman"] > 0.9 and rows[0]["label_agreement"] == 0.0
    alone = per_class(target[:1], realised[:1], label[:1] == 0, label[:1], ["easy"])
    assert alone[0]["spearman"] is None and alone[0]["n"] == 1


def frontier_of(*bins: tuple[int, float | None]) -> list[dict[str, Any]]:
    return [
        {"bin": [i / 10, (i + 1) / 10], "real_n": n, "real_agreement": agreement}
        for i, (n, agreement) in enumerate(bins)
    ]


def test_labels_hold_up_to_the_first_fall() -> None:
    rows = frontier_of((50, 1.0), (0, None), (50, 0.95), (50, 0.5), (50, 1.0))
    assert labels_hold_until(rows, "real") == pytest.approx(0.3)
    assert labels_hold_until(rows[3:], "real") is None


def test_few_images_say_nothing_alone() -> None:
    assert labels_hold_until(frontier_of((1, 1.0), (7, 6 / 7), (20, 0.85), (50, 0.5)), "real") is None
    assert labels_hold_until(frontier_of((1, 0.0), (19, 1.0), (2, 0.5), (50, 0.5)), "real") == pytest.approx(0.2)
    assert labels_hold_until(frontier_of((4, 1.0), (5, 1.0)), "real") is None


def test_a_density_keeps_all_its_mass_inside() -> None:
    values = np.random.default_rng(0).beta(0.4, 3, 4000)
    made = density(values)
    curve = np.asarray(made["curve"])
    assert np.trapezoid(curve, np.linspace(0, 1, len(curve))) == pytest.approx(1, abs=0.02)
    assert curve.argmax() < 5 and made["mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert density(np.full(5, 0.3))["curve"] is None and density(np.array([np.nan]))["mean"] is None


def test_fifty_thousand_images_pass_by_in_constant_memory() -> None:
    """Batches of images come and go; what is kept is one number per image and question."""
    rng, side, batch = np.random.default_rng(0), 64, 500
    agreement = Agreement(lambda images: images[:, 0, 0, 0] % 10)

    def peak_of(batches: int) -> int:
        tracemalloc.start()
        for _ in range(batches):
            images = np.zeros((batch, side, side, 3), np.uint8)
            images[:, 0, 0, 0] = rng.integers(0, 10, batch)
            agreement.add(images, rng.integers(0, 10, batch))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few = peak_of(4)
    assert peak_of(96) < few + 96 * batch * 2
    agrees = agreement.agrees
    assert len(agrees) == 50_000 and agrees.mean() == pytest.approx(0.1, abs=0.01)
    target = rng.uniform(0, 0.8, 50_000)
    made = adherence(target, np.clip(target + rng.normal(0, 0.1, 50_000), 0, 1), agrees)
    assert made["n"] == 50_000 and sum(t["n"] for t in made["targets"]) == 50_000
