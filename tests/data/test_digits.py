"""The embedded digits: fewer training images on demand, the same judge and test images always."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.data.digits import is_digits, training_images, write_digits
from dcdm_cli.errors import UsageError


def names(folder: Path, split: str) -> set[str]:
    return {path.relative_to(folder / split).as_posix() for path in (folder / split).rglob("*.png")}


def test_a_small_set_is_part_of_the_whole_one(tmp_path: Path) -> None:
    whole, small = write_digits(tmp_path / "all"), write_digits(tmp_path / "50", 50)
    assert len(names(whole, "train")) == 200 and len(names(small, "train")) == 50
    assert names(small, "train") < names(whole, "train")
    assert {len(list(path.iterdir())) for path in (small / "train").iterdir()} == {5}
    for split in ("judge", "test"):
        assert names(small, split) == names(whole, split)


@pytest.mark.parametrize("source, images", [("digits", 200), ("digits:50", 50), ("digits:200", 200)])
def test_how_many_is_part_of_the_name(source: str, images: int) -> None:
    assert is_digits(source) and training_images(source) == images


@pytest.mark.parametrize("source", ["digits:", "digits:55", "digits:10", "digits:400", "digits:x"])
def test_other_numbers_are_refused_with_what_there_is(source: str) -> None:
    with pytest.raises(UsageError, match="200 embedded training digits") as refused:
        training_images(source)
    assert "from 20 to 200" in refused.value.hint


def test_a_folder_of_that_name_is_a_folder() -> None:
    assert not is_digits("./digits") and not is_digits("digits.csv")
