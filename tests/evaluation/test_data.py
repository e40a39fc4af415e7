"""Which images an evaluation may use, from values alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.evaluation.data import check_classes, check_scorer, evaluated

NAMES = ("wren", "robin")


def manifest(train: int = 12, test: int = 4, judge: int = 4, *, shared: int = 0) -> Manifest:
    """shared: so many of the test images are training images too, by content."""
    counts = {"train": train, "test": test, "judge": judge}
    rows = []
    for split, count in counts.items():
        for i in range(count):
            content = f"{'train' if split == 'test' and i < shared else split}{i}"
            rows.append({
                "sample_id": f"{content}-{split}{i}",  # content and name, as a scan has it
                "path": f"{split}/{i}.png", "label": i % 2, "class_name": NAMES[i % 2],
                "split": split, "synthetic": False, "difficulty": 0.5,
            })  # fmt: skip
    return Manifest.from_rows(rows, NAMES)


@pytest.mark.parametrize(("holdout", "count"), [("test", 4), ("validation", 6)])
def test_settings_are_chosen_on_the_judges_images(holdout: str, count: int) -> None:
    data = evaluated(manifest(judge=6), holdout)
    assert len(data.held_out) == count and len(data.real) == 12 and data.warnings == ()


def test_held_out_images_that_were_trained_on_are_left_out_and_that_is_said() -> None:
    data = evaluated(manifest(shared=1), "test")
    assert len(data.held_out) == 3 and "1 of 4" in data.warnings[0]
    with pytest.raises(UsageError, match="every held-out image"):
        evaluated(manifest(shared=4), "test")


def test_few_images_of_a_class_are_said() -> None:
    assert "fewer than 5" in evaluated(manifest(train=8), "test").warnings[0]


@pytest.mark.parametrize(("holdout", "missing"), [("test", "test"), ("validation", "judge")])
def test_nothing_to_measure_on_is_refused_with_the_command_that_sets_images_aside(holdout: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"no {missing} images") as caught:
        evaluated(manifest(**{missing: 0}), holdout)
    assert "dcdm score --test-fraction 0.3" in caught.value.hint and f"NAME={missing}" in caught.value.hint


def test_what_is_not_measured_on_may_be_missing() -> None:
    assert len(evaluated(manifest(judge=0), "test").held_out) == len(evaluated(manifest(test=0), "validation").held_out)


def test_one_class_alone_says_nothing() -> None:
    with pytest.raises(UsageError, match="two classes"):
        evaluated(manifest(train=1), "test")


def test_adapter_and_scorer_must_be_of_these_images(tmp_path: Path) -> None:
    check_classes(tmp_path, NAMES, NAMES)
    for theirs, said in ((("wren", "crow"), "class 1 is 'crow' there"), (("wren",), "1 of them")):
        with pytest.raises(MismatchError, match=said):
            check_classes(tmp_path, theirs, NAMES)
    with pytest.raises(UsageError, match="needs a scorer"):
        check_scorer(tmp_path / "scorer")
