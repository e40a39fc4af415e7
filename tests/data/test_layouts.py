"""What a folder means: two readings are refused, results of our own are never images, and nothing vanishes unsaid."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdm_cli.data.classes import untrainable_warnings
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.sources import Scan
from dcdm_cli.data.split_names import read_split_map
from dcdm_cli.errors import UsageError

Put = Callable[..., Path]
Scanned = Callable[..., Scan]


@pytest.fixture
def split_tree(put: Put) -> None:
    for seed, split in enumerate(("train", "test")):
        for index, name in enumerate(("cat", "dog")):
            put(f"{split}/{name}/{index}.png", 10 * seed + index)


def splits_of(scan: Scan) -> list[tuple[str, str]]:
    return sorted({(row["split"], row["class_name"]) for row in scan.manifest.rows()})


BOTH = [("test", "cat"), ("test", "dog"), ("train", "cat"), ("train", "dog")]


@pytest.mark.parametrize(
    ("extra", "proposal"), [("extra", "extra=train"), ("dev", "dev=judge"), ("holdout", "holdout=test")]
)
@pytest.mark.usefixtures("split_tree")
def test_a_folder_beside_splits_is_asked_about(put: Put, scanned: Scanned, extra: str, proposal: str) -> None:
    put(f"{extra}/cat/x.png", 90)
    with pytest.raises(UsageError, match=f"test/, train/ are splits by their names, {extra}/ is not") as caught:
        scanned()
    assert f"--split-map {proposal}" in caught.value.hint and f"--exclude {extra}" in caught.value.hint
    assert splits_of(scanned(exclude=(extra,))) == BOTH
    assert splits_of(scanned(split_map=read_split_map([f"{extra}=none"]))) == BOTH
    assert ("judge", "cat") in splits_of(scanned(split_map=read_split_map([f"{extra}=val"])))
    as_classes = scanned(split_map=read_split_map(["train=class", "test=class", f"{extra}=class"]))
    assert as_classes.manifest.class_names == tuple(sorted(("train", "test", extra)))


@pytest.mark.parametrize("word", ["dev", "eval"])
def test_words_that_may_be_splits_are_asked_about(put: Put, scanned: Scanned, word: str) -> None:
    put(f"{word}/cat/a.png", 1)
    put("other/cat/b.png", 2)
    with pytest.raises(UsageError, match=f"{word}/ is not") as caught:
        scanned()
    assert f"--split-map {word}=class" in caught.value.hint
    put("flat/a.png", 3)
    assert scanned(exclude=(word,)).manifest.class_names == ("flat", "other")


def test_splits_without_class_folders_are_not_classes(put: Put, scanned: Scanned) -> None:
    put("train/a.png", 1)
    put("test/b.png", 2)
    with pytest.raises(UsageError, match=r"test/, train/ .* no class folders") as caught:
        scanned()
    assert "--split-map test=class,train=class" in caught.value.hint
    assert scanned(split_map={"train": "class", "test": "class"}).manifest.class_names == ("test", "train")


@pytest.mark.usefixtures("split_tree")
def test_a_flat_test_folder_beside_labelled_images_can_be_left_out(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    """Competitions keep the test images' labels to themselves."""
    shutil.rmtree(tmp_path / "images" / "test")
    for index in range(3):
        put(f"test/{index}.png", 50 + index)
    with pytest.raises(UsageError, match=r"test/ has no class folders, as train/ has") as caught:
        scanned()
    assert "--split-map test=none" in caught.value.hint and "train=class,test=class" in caught.value.hint
    found = scanned(split_map=read_split_map(["test=none"]))
    assert splits_of(found) == [("train", "cat"), ("train", "dog")] and not found.rejected


def test_folds_are_told_from_classes(put: Put, scanned: Scanned) -> None:
    for seed, path in enumerate(("fold1/cat/a", "fold1/dog/b", "fold2/cat/c", "fold2/dog/d")):
        put(f"{path}.png", seed)
    (warning,) = scanned().warnings
    assert "'cat', 'dog'" in warning and "--split-map fold1=train,fold2=train" in warning
    merged = scanned(split_map=read_split_map(["fold1=train", "fold2=train"]))
    assert merged.manifest.class_names == ("cat", "dog") and merged.warnings == ()


@pytest.mark.parametrize("marks", [(".lock.json",), ("records/score.json", "dcdm.toml"), ("shards/output.json",)])
@pytest.mark.usefixtures("split_tree")
def test_results_of_our_own_are_not_images(put: Put, scanned: Scanned, tmp_path: Path, marks: tuple[str, ...]) -> None:
    put("dcdm-run/figures/x.png", 90)
    for mark in marks:
        (tmp_path / "images/dcdm-run" / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/dcdm-run" / mark).write_text("{}")
    scan = scanned()
    assert splits_of(scan) == BOTH
    assert any("of dcdm's own" in warning for warning in scan.warnings)


def test_a_run_folder_is_no_source(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("figures/x.png")
    (tmp_path / "images/.lock.json").write_text("{}")
    with pytest.raises(UsageError, match="is a run folder"):
        scanned()


def test_patterns_leave_out_files_and_folders(put: Put, scanned: Scanned) -> None:
    for seed, path in enumerate(("cat/a.png", "cat/a_mask.png", "dog/raw/b.png", "dog/c.png")):
        put(path, seed)
    scan = scanned(exclude=("*_mask.png", "dog/raw"))
    assert list(scan.manifest.column("path")) == ["cat/a.png", "dog/c.png"]
    assert "2 files and folders left out by --exclude" in scan.warnings


@pytest.mark.usefixtures("split_tree")
def test_what_was_understood_is_told(scanned: Scanned) -> None:
    train, judge, test = scanned().splits
    assert str(train) == "train: 2 images of 2 classes, 1 each (folders test/, train/)"
    assert (judge.images, judge.origin) == (0, "none in the source")
    assert (test.images, test.smallest, test.largest) == (2, 1, 1)


def test_what_is_set_aside_is_told(put: Put, scanned: Scanned) -> None:
    for index in range(40):
        put(f"{('cat', 'dog')[index % 2]}/{index}.png", index)
    facts = {one.split: one for one in scanned(judge_fraction=0.5, test_fraction=0.2).splits}
    assert (facts["train"].images, facts["train"].origin) == (32, "the source names no splits")
    assert facts["test"].origin == "4 set aside from train" == facts["judge"].origin


@pytest.mark.parametrize("pair", ["val", "=test", "val=tests", "val="])
def test_a_split_map_that_says_nothing(pair: str) -> None:
    with pytest.raises(UsageError, match="NAME=SPLIT"):
        read_split_map([pair])


def test_a_picture_in_two_classes_is_named(put: Put, scanned: Scanned) -> None:
    put("cat/a.png", 1)
    put("dog/b.png", 1)
    put("dog/c.png", 2)
    scan = scanned()
    assert scan.warnings == ("1 images are in more than one class: train:cat/a.png = train:dog/b.png",)
    assert [rows.tolist() for rows in scan.copies.labels] == [[0, 1]]


def test_classes_that_nothing_can_be_learnt_of_are_left_out_or_refused(
    put: Put, scanned: Scanned, tmp_path: Path
) -> None:
    for seed, path in enumerate(("train/cat/a", "train/cat/b", "train/dog/c", "train/dog/d", "train/eel/e")):
        put(f"{path}.png", seed)
    put("val/fox/f.png", 9)
    put("val/cat/g.png", 10)
    scan = scanned(sparse_classes="drop", min_train=2)
    assert scan.manifest.class_names == ("cat", "dog") and scan.manifest.column("label").tolist() == [0, 0, 1, 1, 0]
    assert [(one.name, one.train, one.images) for one in scan.left_out] == [("eel", 1, 1), ("fox", 0, 1)]
    with pytest.raises(UsageError, match=r"'eel' \(1 in train, 1 in all\), 'fox' \(0 in train"):
        scanned(sparse_classes="stop", min_train=2)
    assert len(scanned(sparse_classes="keep").manifest.class_names) == 4
    merged = tmp_path / "classes.json"
    merged.write_text('{"cat": 0, "dog": 1, "eel": 1, "fox": 0}')
    scan = scanned(class_map=merged, sparse_classes="drop", min_train=2)
    assert scan.manifest.class_names == ("cat", "dog") and scan.manifest.class_counts().tolist() == [4, 3]


@pytest.mark.parametrize(
    ("difficulty", "suspect", "says"),
    [
        ([0.1, 0.2, 0.3], [False, False, False], None),
        ([0.1, 0.2, 0.3], [False, False, True], "no training image of 1 classes is trusted: 'dog'"),
        ([0.1, 0.2, None], [False, False, False], "no training image of 1 classes is scored: 'dog'"),
    ],
)
def test_classes_that_fine_tuning_would_refuse_are_named(
    difficulty: list[float | None], suspect: list[bool], says: str | None
) -> None:
    rows = [
        {"label": int(i == 2), "split": "train", "difficulty": s, "suspect_label": doubt}
        for i, (s, doubt) in enumerate(zip(difficulty, suspect, strict=True))
    ]
    found = list(untrainable_warnings(Manifest.from_rows(rows, ("cat", "dog"))))
    assert [warning.startswith(says or "-") for warning in found] == [True] * (says is not None)
    assert all(("--keep-suspects" in warning) == ("trusted" in warning) for warning in found)
