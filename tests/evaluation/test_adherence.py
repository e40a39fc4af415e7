from __future__ import annotations

import numpy as np
import pytest

from dcdm_cli.evaluation.adherence import adherence, frontier

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
