"""Scanning class-folder trees, and the rules that hold for every source."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdm_cli.data.classes import is_split_like
from dcdm_cli.data.manifest import Manifest, read_manifest, write_manifest
from dcdm_cli.data.sources import Scan, TooManyRejectedError
from dcdm_cli.errors import NotFoundError, UsageError

from .conftest import encoded, picture

Put = Callable[..., Path]
Scanned = Callable[..., Scan]


def listed(manifest: Manifest) -> dict[str, tuple[str, str]]:
    return {row["path"]: (row["split"], row["class_name"]) for row in manifest.rows()}


def test_class_folders_become_rows(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("cat/b/deep.png", 1)
    put("cat/a.PNG", 2)
    put("dog/c.png", 3)
    scan = scanned()
    manifest = scan.manifest
    assert manifest.class_names == ("cat", "dog")
    assert listed(manifest) == {
        "cat/a.PNG": ("train", "cat"),
        "cat/b/deep.png": ("train", "cat"),
        "dog/c.png": ("train", "dog"),
    }
    assert manifest.column("label").tolist() == [0, 0, 1]
    assert manifest.column("width").tolist() == [12] * 3 and manifest.column("height").tolist() == [8] * 3
    assert not manifest.column("synthetic").any()
    assert manifest.root == (tmp_path / "images").resolve() and all(path.is_file() for path in manifest.paths())
    assert scan.rejected == () and scan.warnings == () and scan.origin == str(manifest.root)


def test_a_scan_changes_nothing_and_repeats_exactly(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    for index in range(30):
        put(f"class {index % 2}/{index}.png", index)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*")}
    first = scanned(judge_fraction=0.3, test_fraction=0.2).manifest
    assert scanned(judge_fraction=0.3, test_fraction=0.2).manifest.table.equals(first.table)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*")} == before
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("word", "split"), [("training", "train"), ("Test", "test"), ("valid", "judge"), ("judge", "judge")]
)
def test_top_folders_are_splits_if_all_are_split_words(put: Put, scanned: Scanned, word: str, split: str) -> None:
    put("train/cat/a.png", 1)
    put(f"{word}/dog/b.png", 2)
    manifest = scanned().manifest
    assert manifest.class_names == ("cat", "dog")
    assert listed(manifest)[f"{word}/dog/b.png"] == (split, "dog")


def test_a_class_called_like_a_split_stays_a_class(put: Put, scanned: Scanned) -> None:
    put("test tube/a.png", 1)
    put("train/b.png", 2)
    put("beaker/c.png", 3)
    scan = scanned()
    assert scan.manifest.class_names == ("beaker", "test tube", "train")
    assert set(scan.manifest.column("split")) == {"train"}
    assert any("'test tube'" in warning and "'train'" in warning for warning in scan.warnings)


@pytest.mark.parametrize("name", ["test tube", "train car", "dev-board", "val_x", "x.eval", "Test", "test1"])
def test_split_words_in_class_names_are_seen(name: str) -> None:
    assert is_split_like(name)


@pytest.mark.parametrize("name", ["cat", "contest", "trainer", "devil", "valley", "7"])
def test_split_words_inside_other_words_are_not(name: str) -> None:
    assert not is_split_like(name)


def test_odd_names_are_fine(put: Put, scanned: Scanned) -> None:
    names = ["a b.png", "n\nl.png", "[x].png", "-dash.png", "é.png", "😀.png", "c:d.png", "\x1b[31m.png", "%41.png"]
    for index, name in enumerate(names):
        put(f"[cat]/{name}", index)
    put("=1+1/x.png", 99)
    scan = scanned()
    assert {Path(path).name for path in scan.manifest.column("path")} == {*names, "x.png"}
    assert all(path.is_file() for path in scan.manifest.paths())


def test_litter_devices_and_links_are_passed_over(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    target = put("cat/a.png", 1)
    put("dog/b.png", 2)
    put(".hidden/x.png")
    put("__MACOSX/x.png")
    put("cat/.x.png")
    os.mkfifo(tmp_path / "images/cat/pipe.png")
    for name in ("cat/Thumbs.db", "cat/a.txt", "cat/vector.svg", "README.md"):
        (tmp_path / "images" / name).write_text("x")
    (tmp_path / "images/dog/link.png").symlink_to(target)
    (tmp_path / "images/dog/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/dog/gone.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "images/dog/circle.png").symlink_to("circle.png")
    scan = scanned()
    assert set(listed(scan.manifest)) == {"cat/a.png", "dog/b.png"}
    assert scan.rejected == ()
    assert sorted(scan.warnings) == [
        "1 files without an image suffix ignored",
        "2 hidden files and folders passed over",
        "2 links not followed (--follow-links does)",
        "2 links that lead nowhere passed over",
    ]


def test_links_are_followed_inside_the_root_only(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    target = put("cat/a.png", 1)
    put("dog/b.png", 2)
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(picture(3)))
    (tmp_path / "images/dog/link.png").symlink_to(target)
    (tmp_path / "images/dog/out.png").symlink_to(outside)
    (tmp_path / "images/dog/loop").symlink_to(tmp_path / "images/dog")
    scan = scanned(follow_links=True, max_bad=1.0)
    assert set(listed(scan.manifest)) == {"cat/a.png", "dog/b.png", "dog/link.png"}
    assert [(r.path, r.reason) for r in scan.rejected] == [("dog/out.png", "outside_root")]


def test_names_that_are_not_utf8_are_rejected(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("cat/a.png", 1)
    for raw in (b"cat/\xff.png", b"\xfe/b.png"):
        path = os.fsencode(tmp_path / "images") + b"/" + raw
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(encoded(picture(2)))
    scan = scanned(max_bad=1.0)
    assert scan.manifest.class_names == ("cat",)
    assert [rejection.reason for rejection in scan.rejected] == ["bad_name", "bad_name"]
    json.dumps([rejection.path for rejection in scan.rejected]).encode()
    assert "\\udcff" in scan.rejected[0].path


def test_an_image_beside_the_class_folders_has_no_label(put: Put, scanned: Scanned) -> None:
    put("cat/a.png", 1)
    put("stray.png", 2)
    assert [(r.path, r.reason) for r in scanned(max_bad=0.5).rejected] == [("stray.png", "no_label")]


def test_unusable_images_are_listed_until_there_are_too_many(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    for index in range(9):
        put(f"cat/{index}.png", index)
    put("cat/broken.png").write_bytes(b"text")
    scan = scanned(max_bad=0.1)
    assert len(scan.manifest) == 9
    assert [(r.path, r.reason) for r in scan.rejected] == [("cat/broken.png", "not_an_image")]
    for options in ({"max_bad": 0.09}, {"max_bad": 0.5, "strict": True}):
        with pytest.raises(TooManyRejectedError, match=r"cat/broken\.png: not_an_image") as caught:
            scanned(**options)
        assert "--max-bad" in caught.value.hint and caught.value.rejected == scan.rejected


def test_no_usable_image_is_an_error_whatever_is_allowed(put: Put, scanned: Scanned) -> None:
    for index in range(5):
        put(f"cat/{index}.png").write_bytes(b"text")
    with pytest.raises(TooManyRejectedError, match=r"none of the 5 images.*cat/0\.png: not_an_image") as caught:
        scanned(max_bad=1.0)
    assert len(caught.value.rejected) == 5 and "repair" in caught.value.hint


def test_no_images_is_not_found(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    (tmp_path / "images/cat").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no images"):
        scanned()
    put("cat/a.png")
    with pytest.raises(UsageError, match="'test' is not a split of this source, which has train/"):
        put("train/cat/a.png")
        (tmp_path / "images/cat/a.png").unlink()
        (tmp_path / "images/cat").rmdir()
        scanned(split="test")


def test_sources_that_are_not_there(scanned: Scanned, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        scanned(tmp_path / "nowhere")
    (tmp_path / "photo.png").write_bytes(encoded(picture()))
    with pytest.raises(UsageError, match="no source"):
        scanned(tmp_path / "photo.png")


def test_a_split_can_be_chosen_or_given(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("train/cat/a.png", 1)
    put("test/cat/b.png", 2)
    assert set(listed(scanned(split="testing").manifest)) == {"test/cat/b.png"}
    assert listed(scanned(tmp_path / "images/train", split="test").manifest) == {"cat/a.png": ("test", "cat")}
    with pytest.raises(UsageError, match="not a split"):
        scanned(split="fold1")


def test_a_folder_without_images_is_no_class(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("cat/a.png", 1)
    put("dog/b.png", 2)
    (tmp_path / "images/bird/notes").mkdir(parents=True)
    (tmp_path / "images/bird/notes/readme.txt").write_text("to come")
    scan = scanned()
    assert scan.manifest.class_names == ("cat", "dog")
    assert scan.warnings == ("folders without images passed over: 'bird'",)


def test_one_class_is_a_warning(put: Put, scanned: Scanned) -> None:
    put("cat/a.png")
    assert any("only one class" in warning for warning in scanned().warnings)


@pytest.mark.parametrize(
    "twins", [("Cat", "cat"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"))]
)
def test_two_spellings_of_a_class_are_an_error(put: Put, scanned: Scanned, twins: tuple[str, str]) -> None:
    for index, name in enumerate(twins):
        put(f"{name}/a.png", index)
    with pytest.raises(UsageError, match="differ only"):
        scanned()


def test_copies_are_reported_and_leaks_called_so(put: Put, scanned: Scanned) -> None:
    put("train/cat/a.png", 1)
    put("train/cat/copy.png", 1)
    put("train/dog/b.png", 2)
    put("test/dog/b.png", 2)
    scan = scanned()
    assert len(set(scan.manifest.column("sample_id"))) == 4
    leak, within = scan.warnings
    assert leak.startswith("leak: 1 ") and "test:test/dog/b.png = train:train/dog/b.png" in leak
    assert "1 images have exact copies" in within


@pytest.mark.parametrize("content", ['["dog", "cat", "cow"]', '{"cat": 1, "cow": 2, "dog": 0}'])
def test_a_class_map_sets_the_order(put: Put, scanned: Scanned, tmp_path: Path, content: str) -> None:
    put("cat/a.png", 1)
    put("0/b.png", 2)  # by index: dog
    put("emu/c.png", 3)
    file = tmp_path / "classes.json"
    file.write_text(content)
    scan = scanned(class_map=file, max_bad=0.5)
    assert scan.manifest.class_names == ("dog", "cat", "cow")
    assert {row["path"]: row["label"] for row in scan.manifest.rows()} == {"0/b.png": 0, "cat/a.png": 1}
    assert [(r.path, r.reason) for r in scan.rejected] == [("emu/c.png", "no_label")]


@pytest.mark.parametrize("content", ["{", "[]", "3", '["a", 1]', '{"a": 0, "b": 2}', '{"a": "x"}', "[" * 100_000])
def test_a_bad_class_map_is_a_usage_error(put: Put, scanned: Scanned, tmp_path: Path, content: str) -> None:
    put("cat/a.png")
    file = tmp_path / "classes.json"
    file.write_text(content)
    with pytest.raises(UsageError, match="class map"):
        scanned(class_map=file)
    with pytest.raises(NotFoundError, match="class map"):
        scanned(class_map=tmp_path / "none.json")


def test_class_folders_have_no_columns(put: Put, scanned: Scanned) -> None:
    put("cat/a.png")
    with pytest.raises(UsageError, match="no columns"):
        scanned(score_column="score")


def test_a_scan_survives_the_manifest_file(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("cat/a.png", 1)
    put("dog/b.png", 2)
    manifest = scanned().manifest
    write_manifest(manifest, tmp_path / "run/samples.parquet")
    read = read_manifest(tmp_path / "run/samples.parquet")
    assert read.table.equals(manifest.table) and read.paths() == manifest.paths()
