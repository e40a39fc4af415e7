from __future__ import annotations

from dataclasses import replace

import numpy as np

from dcdm_cli.evaluation.clusters import Placed, hard_groups

NAMES = ("cat", "dog", "empty")


def placed(groups: list[tuple[int, int, float, int, int]], seed: int = 0) -> Placed:
    """groups: (direction, label, difficulty, predicted, images)."""
    rng, parts = np.random.default_rng(seed), [np.repeat([group[:4]], group[4], axis=0) for group in groups]
    table = np.concatenate(parts)
    features = np.eye(6)[table[:, 0].astype(int)] * 5 + rng.normal(0, 0.1, (len(table), 6))
    return Placed(features, table[:, 1].astype(int), table[:, 2], table[:, 3].astype(int))


def test_what_is_hard_in_a_class_is_found() -> None:
    real = placed([(0, 0, 0.1, 0, 20), (1, 0, 0.8, 1, 12), (2, 1, 0.3, 1, 20)])
    made = placed([(1, 0, 0.9, 1, 5), (2, 1, 0.2, 1, 3)], seed=1)
    rows = hard_groups(real, NAMES, made, most=2)
    cats = [row for row in rows if row["class"] == "cat"]
    assert [row["group"] for row in cats] == [0, 1] and [row["real"]["n"] for row in cats] == [12, 20]
    assert cats[0]["real"]["difficulty"] == 0.8 and cats[0]["real"]["mistaken_for"] == [{"class": "dog", "share": 1.0}]
    assert set(cats[0]["real"]["typical"]) <= set(range(20, 32)) and cats[1]["real"]["mistaken_for"] == []
    assert cats[0]["generated"]["n"] == 5 and cats[0]["generated"]["difficulty"] == 0.9
    assert cats[1]["generated"] is None and {row["class"] for row in rows} == {"cat", "dog"}


def test_small_classes_and_unknown_difficulties() -> None:
    real = placed([(0, 0, 0.1, 0, 3), (1, 1, 0.5, -1, 4)])
    rows = hard_groups(replace(real, difficulty=np.where(np.arange(7) == 0, np.nan, real.difficulty)), NAMES)
    assert [(row["class"], row["real"]["n"]) for row in rows] == [("cat", 2), ("dog", 4)]
    assert all(row["generated"] is None and row["real"]["mistaken_for"] == [] for row in rows)
