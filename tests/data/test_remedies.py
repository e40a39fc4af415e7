"""What a scan says helps: the remedy fits what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdm_cli.data.corrections import read_rows
from dcdm_cli.data.sources import Scan, TooManyRejectedError
from dcdm_cli.data.split_names import read_split_map
from dcdm_cli.errors import NotFoundError, UsageError

from .conftest import encoded, picture

Put = Callable[..., Path]
Scanned = Callable[..., Scan]


@pytest.mark.parametrize("below", ["{}/cat,{}/dog", "{}/train/cat,{}/train/dog", "{}/train/cat,{}/val/cat"])
@pytest.mark.parametrize("wrapper", ["images", "export/images"])
def test_a_folder_around_the_classes_is_no_class(
    put: Put, scanned: Scanned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, wrapper: str
) -> None:
    for seed, folder in enumerate(below.split(",")):
        put(f"{folder.format(wrapper)}/{seed}.png", seed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="images in one folder only") as caught:
        scanned()
    assert f"dcdm score images/{wrapper}," in caught.value.hint
    assert len(scanned(tmp_path / "images" / wrapper).manifest) == 2
    name = wrapper.partition("/")[0]
    assert scanned(split_map=read_split_map([f"{name}=class"])).manifest.class_names == (name,)


def test_a_class_with_one_folder_in_it_stays_a_class(put: Put, scanned: Scanned) -> None:
    put("cat/2020/a.png", 1)
    assert scanned().manifest.class_names == ("cat",)
    put("cat/b.png", 2)
    put("cat/2021/c.png", 3)
    assert scanned().manifest.class_names == ("cat",)


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
@pytest.mark.parametrize("loose", [1, 3])
def test_images_without_a_class_are_to_be_sorted(
    put: Put, scanned: Scanned, classes: tuple[str, ...], loose: int
) -> None:
    for seed, name in enumerate(classes):
        put(f"{name}/{seed}.png", seed)
    for number in range(loose):
        put(f"{number} b.png", 10 + number)
    with pytest.raises(TooManyRejectedError) as caught:
        scanned()
    hint = caught.value.hint
    assert "one folder per class" in hint and "metadata.csv" in hint and "repair" not in hint
    assert ("--exclude '0 b.png'" if loose == 1 else "--exclude NAME,NAME") in hint


def test_rows_without_a_label_are_to_get_one(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("a.png", 1)
    (tmp_path / "images/list.csv").write_text("path,label,kind\na.png,,cat\n")
    with pytest.raises(TooManyRejectedError) as caught:
        scanned(tmp_path / "images/list.csv")
    assert "--label-column" in caught.value.hint


def test_other_suffixes_of_jpeg_are_read(put: Put, scanned: Scanned) -> None:
    for seed, name in enumerate(("cat/a.jfif", "dog/b.JPE")):
        put(name).write_bytes(encoded(picture(seed), "JPEG"))
    assert len(scanned().manifest) == 2


def test_files_that_are_no_images_are_counted_where_there_is_none(put: Put, scanned: Scanned) -> None:
    for name in ("cat/1.HEIC", "cat/2.heic", "dog/3.heic", "dog/4.raw", "dog/notes.txt", "dog/LICENSE"):
        put(name)
    with pytest.raises(NotFoundError, match=r"the files there are 3 \.heic, 1 \.raw, 1 without a suffix") as caught:
        scanned()
    assert "convert them to one of .bmp" in caught.value.hint and "one subfolder per class" in caught.value.hint


@pytest.mark.parametrize(("name", "is_listed"), [("list.csv", True), ("metadata.csv", False)])
def test_paths_of_windows_are_read(put: Put, scanned: Scanned, tmp_path: Path, name: str, is_listed: bool) -> None:
    put("cat/1.png", 1)
    put("cat/a\\b.png", 2)  # a backslash in the name of a file is one
    rows = "file_name,kind\ncat\\1.png,x\ncat/a\\b.png,y\n" + ("cat\\none.png,x\n" if is_listed else "")
    (tmp_path / "images" / name).write_text(rows)
    source = tmp_path / "images" / (name if is_listed else "")
    scan = scanned(source, label_column="kind", image_column="file_name", max_bad=0.5)
    assert {row["path"]: row["class_name"] for row in scan.manifest.rows()} == {"cat/1.png": "x", "cat/a\\b.png": "y"}
    assert [one.reason for one in scan.rejected] == ["unreadable"] * is_listed


def test_backslashes_lead_no_further_than_slashes(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("a.png", 1)
    (tmp_path / "outside.png").write_bytes(encoded(picture(2)))
    (tmp_path / "images/list.csv").write_text("path,label\na.png,cat\n..\\outside.png,cat\n")
    scan = scanned(tmp_path / "images/list.csv", max_bad=0.5)
    assert [one.reason for one in scan.rejected] == ["outside_root"]


@pytest.mark.parametrize("name", ["list.csv", "metadata.csv"])
def test_a_list_without_a_header_is_seen(put: Put, scanned: Scanned, tmp_path: Path, name: str) -> None:
    put("cat/1.png", 1)
    (tmp_path / "images" / name).write_text("cat/1.png,cat\ncat/2.png,cat\n")
    with pytest.raises(UsageError, match="has no column") as caught:
        scanned(tmp_path / "images" / (name if name == "list.csv" else ""))
    assert caught.value.hint.startswith("the first row looks like data: give the file a header line")
    (tmp_path / "images" / name).write_text("image name,kind\ncat/1.png,cat\n")
    with pytest.raises(UsageError, match="has no column") as caught:
        scanned(tmp_path / "images" / (name if name == "list.csv" else ""))
    assert caught.value.hint.startswith("name the columns")


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (("{}/photos/cat/1.png", "{}/photos/dog/2.png"), "--image-root {}/photos,"),
        (("../photos/cat/1.png",), "--image-root FOLDER"),
        (("https://example.org/1.png",), "download the images"),
    ],
)
def test_images_elsewhere_are_reached_by_their_folder(
    tmp_path: Path, scanned: Scanned, paths: tuple[str, ...], says: str
) -> None:
    for seed, name in enumerate(("cat/1.png", "dog/2.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(encoded(picture(seed)))
    file = tmp_path / "lists" / "list.csv"
    file.parent.mkdir()
    file.write_text("path,label\n" + "".join(f"{path.format(tmp_path)},cat\n" for path in paths))
    with pytest.raises(TooManyRejectedError) as caught:
        scanned(file)
    assert says.format(tmp_path) in f"{caught.value.hint}," and "repair" not in caught.value.hint


@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("latin-1", "WINDOWS-1252")]
)
def test_the_encoding_of_a_list_is_named(put: Put, scanned: Scanned, tmp_path: Path, encoding: str, says: str) -> None:
    put("a.png", 1)
    file = tmp_path / "images" / "my list.csv"
    file.write_bytes("path,label\na.png,Käfer\n".encode(encoding))
    with pytest.raises(UsageError, match="is not UTF-8: it looks like") as caught:
        scanned(file)
    assert f"iconv -f {says} -t UTF-8 '{file}' > '{file.with_name('my list-utf8.csv')}'" in caught.value.hint
    if encoding != "utf-16-le":
        with pytest.raises(UsageError, match="is not UTF-8: it looks like"):
            read_rows(file)
    with pytest.raises(UsageError) as caught:
        scanned("-", standard_input=file.read_bytes())
    assert f"iconv -f {says} -t UTF-8 FILE | dcdm score -" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "says"), [("list.json", "list.jsonl"), ("photos.zip", "unpack it"), ("a.png", "pass the folder")]
)
def test_a_file_that_is_no_source_is_told_what_is(scanned: Scanned, tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_text(json.dumps([{"path": "a.png", "label": "cat"}]))
    with pytest.raises(UsageError, match="is no source of images") as caught:
        scanned(tmp_path / name)
    assert says in caught.value.hint
