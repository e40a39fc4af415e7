"""The split rule."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.data.splits import assign_splits
from dcdm_cli.files import hash_bytes


def keys(count: int) -> list[str]:
    return [hash_bytes(str(index).encode()) for index in range(count)]


def assign(splits: list[str | None], labels: list[int] | None = None, contents: list[str] | None = None) -> list[str]:
    return assign_splits(
        splits,
        labels or [0] * len(splits),
        contents or keys(len(splits)),
        judge_fraction=0.3,
        test_fraction=0.2,
    )


def test_without_splits_both_are_carved() -> None:
    assert Counter(assign([None] * 100)) == {"train": 80, "test": 14, "judge": 6}


def test_without_a_judge_it_comes_out_of_test() -> None:
    assigned = assign(["train"] * 10 + ["test"] * 10)
    assert assigned[:10] == ["train"] * 10
    assert Counter(assigned[10:]) == {"test": 7, "judge": 3}


@pytest.mark.parametrize("splits", [["train", "judge", "test"], ["test", "judge"]])
def test_splits_that_are_there_stay(splits: list[str | None]) -> None:
    assert assign(splits) == splits


def test_a_source_that_holds_images_out_keeps_all_its_training_images() -> None:
    assigned = assign(["train"] * 100 + ["judge"] * 20)
    assert assigned[:100] == ["train"] * 100
    assert Counter(assigned[100:]) == {"test": 14, "judge": 6}


def test_the_test_split_can_be_taken_from_train_all_the_same() -> None:
    fractions = {"judge_fraction": 0.3, "test_fraction": 0.2}
    splits = ["train"] * 10 + ["judge"] * 5
    assigned = assign_splits(splits, [0] * 15, keys(15), **fractions, test_from="train")
    assert Counter(assigned) == {"train": 8, "test": 2, "judge": 5}


def test_each_class_is_carved_alike() -> None:
    labels = [0] * 50 + [1] * 10
    assigned = assign([None] * 60, labels)
    assert [Counter(s for s, y in zip(assigned, labels, strict=True) if y == k)["train"] for k in (0, 1)] == [40, 8]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([None, "train", "judge", "test"]), st.integers(0, 3), st.integers(0, 20)), max_size=60
    )
)
def test_the_rule_holds_for_any_set(rows: list[tuple[str | None, int, int]]) -> None:
    splits, labels, seeds = ([row[i] for row in rows] for i in range(3))
    contents = [hash_bytes(str(seed).encode()) for seed in seeds]
    assigned = assign_splits(splits, labels, contents, judge_fraction=0.3, test_fraction=0.2)
    before = {label for split, label in zip(splits, labels, strict=True) if split in (None, "train")}
    after = {label for split, label in zip(assigned, labels, strict=True) if split == "train"}
    assert before == after  # no class loses its last train image
    order = sorted(range(len(rows)), key=lambda i: (contents[i], i))
    shuffled = assign_splits(
        [splits[i] for i in order],
        [labels[i] for i in order],
        [contents[i] for i in order],
        judge_fraction=0.3,
        test_fraction=0.2,
    )
    assert shuffled == [assigned[i] for i in order]
    if not {"judge", "test"} & set(splits):  # copies of an image of one class stay together
        homes: dict[tuple[int, str], set[str]] = {}
        for label, content, split in zip(labels, contents, assigned, strict=True):
            homes.setdefault((label, content), set()).add(split)
        assert all(len(found) == 1 for found in homes.values())
