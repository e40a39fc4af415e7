"""Scanning CSV and JSONL files, which may come from anyone."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcdm_cli.data.sources import Scan, TooManyRejectedError
from dcdm_cli.errors import DcdmError, UsageError

from .conftest import encoded, picture

Put = Callable[..., Path]
Scanned = Callable[..., Scan]


@pytest.fixture
def manifest(tmp_path: Path, put: Put) -> Callable[[str | bytes], Path]:
    """Two pictures, cat/a.png and dog/b.png, and a manifest file beside their folders."""
    put("cat/a.png", 1)
    put("dog/b.png", 2)

    def write(content: str | bytes, name: str = "list.csv") -> Path:
        path = tmp_path / "images" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


CSV = "path,label,split,caption,hardness\ncat/a.png,cat,train,a cat,0.25\ndog/b.png,dog,test,,\n"
JSONL = (
    '{"path": "cat/a.png", "label": "cat", "split": "train", "caption": "a cat", "hardness": 0.25}\n\n'
    '{"path": "dog/b.png", "label": "dog", "split": "test", "caption": null, "hardness": NaN}\n'
)


def check(scan: Scan, tmp_path: Path) -> None:
    cat, dog = scan.manifest.rows()
    assert scan.manifest.root == (tmp_path / "images").resolve()
    assert (cat["path"], cat["class_name"], cat["split"], cat["caption"], cat["difficulty"]) == (
        "cat/a.png",
        "cat",
        "train",
        "a cat",
        0.25,
    )
    assert (dog["label"], dog["split"], dog["caption"], dog["difficulty"]) == (1, "test", None, None)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.ndjson"])
@pytest.mark.parametrize("content", [CSV, JSONL])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_dialect_is_read(
    manifest: Callable[..., Path], scanned: Scanned, tmp_path: Path, name: str, content: str, bom: bytes, newline: str
) -> None:
    file = manifest(bom + content.replace("\n", newline).encode(), name)
    check(scanned(file, score_column="hardness"), tmp_path)


@pytest.mark.parametrize("content", [CSV, JSONL])
def test_standard_input_is_read(
    manifest: Callable[..., Path], scanned: Scanned, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    monkeypatch.chdir(tmp_path / "images")
    check(scanned("-", score_column="hardness"), tmp_path)


def test_a_folder_with_metadata_of_our_own_is_read_back(manifest: Callable[..., Path], scanned: Scanned) -> None:
    row = {"file_name": "cat/a.png", "label": 3, "class_name": "cat"}
    scan = scanned(manifest(json.dumps(row), "metadata.jsonl"), label_column="class_name")
    assert scan.manifest.class_names == ("cat",)


@pytest.mark.parametrize(
    ("given_path", "expected"),
    [
        ("../outside.png", "outside_root"),
        ("cat/../../outside.png", "outside_root"),
        ("/etc/passwd", "outside_root"),
        ("link.png", "outside_root"),
        ("file:///etc/passwd", "outside_root"),
        ("https://example.org/a.png", "outside_root"),
        ("s3://bucket/a.png", "outside_root"),
        ("", "bad_name"),
        ("a\0b", "bad_name"),
        ("\ud800.png", "bad_name"),
        ("cat/none.png", "unreadable"),
        ("cat", "unreadable"),
        ("loop.png", "unreadable"),
        ("x" * 5000, "unreadable"),
        (None, "bad_name"),
        (["cat/a.png"], "bad_name"),
    ],
)
def test_paths_must_stay_inside(
    manifest: Callable[..., Path], scanned: Scanned, tmp_path: Path, given_path: object, expected: str
) -> None:
    (tmp_path / "outside.png").write_bytes(encoded(picture()))
    (tmp_path / "images/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "images/loop.png").symlink_to(tmp_path / "images/loop.png")
    rows = [{"path": "cat/a.png", "label": "cat"}, {"path": given_path, "label": "cat"}]
    scan = scanned(manifest("\n".join(map(json.dumps, rows)), "list.jsonl"), max_bad=0.5)
    assert [rejection.reason for rejection in scan.rejected] == [expected]
    assert len(scan.manifest) == 1


@pytest.mark.parametrize("spelling", ["./cat/a.png", "cat/../cat/a.png", "{root}/cat/a.png"])
def test_other_spellings_of_a_path_inside_are_fine(
    manifest: Callable[..., Path], scanned: Scanned, tmp_path: Path, spelling: str
) -> None:
    path = spelling.format(root=(tmp_path / "images").resolve())
    scan = scanned(manifest(f"path,label\n{path},cat\n"))
    assert scan.manifest.rows()[0]["path"] == "cat/a.png"


@pytest.mark.parametrize("label", [None, "", "  ", -1, float("nan"), 1.5, ["cat"], "\ud800"])
def test_rows_without_a_label_are_rejected(manifest: Callable[..., Path], scanned: Scanned, label: object) -> None:
    rows = [{"path": "cat/a.png", "label": "cat"}, {"path": "dog/b.png", "label": label}]
    scan = scanned(manifest("\n".join(map(json.dumps, rows)), "list.jsonl"), max_bad=0.5)
    assert [(r.path, r.reason) for r in scan.rejected] == [("dog/b.png", "no_label")]


def test_numbers_as_labels_are_ordered_as_numbers(manifest: Callable[..., Path], scanned: Scanned, put: Put) -> None:
    put("c.png", 3)
    scan = scanned(manifest("path,label\ncat/a.png,10\ndog/b.png,9\nc.png,2\n"))
    assert scan.manifest.class_names == ("2", "9", "10")
    assert scan.manifest.column("label").tolist() == [2, 1, 0]


@pytest.mark.parametrize("value", ["1.5", "-0.1", "inf", "hard", "[]"])
def test_a_score_outside_its_range_names_row_and_value(
    manifest: Callable[..., Path], scanned: Scanned, value: str
) -> None:
    file = manifest(f"path,label,s\ncat/a.png,cat,0\ndog/b.png,dog,{value}\n")
    with pytest.raises(UsageError, match=r"row 2.*" + value.replace("[]", r"\[\]")):
        scanned(file, score_column="s")


@pytest.mark.parametrize("options", [{"score_column": "s"}, {"caption_column": "text"}, {"label_column": "class"}])
def test_a_missing_column_is_named(manifest: Callable[..., Path], scanned: Scanned, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=rf"no column {next(iter(options.values()))}; it has path, label"):
        scanned(manifest("path,label\ncat/a.png,cat\n"), **options)


@pytest.mark.parametrize(
    "content",
    [
        b"path,label\n\xff\xfe,cat\n",
        b'{"path": "cat/a.png", "label": "cat"}\n{"path": ',
        b'{"path": "cat/a.png", "label": "cat"}\n[1]\n',
        b'{"path": ' + b"[" * 100_000,
        b"path,label,split\ncat/a.png,cat,fold1\n",
        b"path,label\n" + b"x" * 200_000 + b",cat\n",
        b"file,label\ncat/a.png,cat\n",
    ],
)
def test_broken_files_are_usage_errors(manifest: Callable[..., Path], scanned: Scanned, content: bytes) -> None:
    with pytest.raises(UsageError):
        scanned(manifest(content))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: ("path,label\n" + t).encode())))
def test_any_bytes_raise_only_our_errors(manifest: Callable[..., Path], scanned: Scanned, content: bytes) -> None:
    with pytest.raises(DcdmError):
        scanned(manifest(content))


def test_all_rows_bad_is_too_many(manifest: Callable[..., Path], scanned: Scanned) -> None:
    with pytest.raises(TooManyRejectedError, match="1 of 1"):
        scanned(manifest("path,label\nnone.png,cat\n"))


@pytest.mark.parametrize("label", ["-1", "-1.0", "nan", "NaN", "None", "<NA>"])
def test_words_for_no_label_are_no_classes(
    manifest: Callable[..., Path], scanned: Scanned, tmp_path: Path, label: str
) -> None:
    file = manifest(f"path,label\ncat/a.png,cat\ndog/b.png,{label}\n")
    scan = scanned(file, max_bad=0.5)
    assert [(r.reason, label in r.detail) for r in scan.rejected] == [("no_label", True)]
    (tmp_path / "classes.json").write_text(json.dumps(["cat", label]))
    assert scanned(file, class_map=tmp_path / "classes.json").manifest.class_names == ("cat", label)


def test_the_nameless_index_of_a_data_frame_is_no_column(manifest: Callable[..., Path], scanned: Scanned) -> None:
    rows = scanned(manifest(",path,label\n7,cat/a.png,cat\n8,dog/b.png,dog\n")).manifest.rows()
    assert [(row["caption"], row["difficulty"]) for row in rows] == [(None, None)] * 2


def test_the_column_of_paths_can_be_named(manifest: Callable[..., Path], scanned: Scanned) -> None:
    file = manifest("filepath,class\ncat/a.png,cat\ndog/b.png,dog\n")
    assert len(scanned(file, image_column="filepath", label_column="class").manifest) == 2
    with pytest.raises(UsageError, match="no column path, label; it has filepath, class") as caught:
        scanned(file)
    assert "--image-column" in caught.value.hint and "--column" in caught.value.hint


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_read_and_told(manifest: Callable[..., Path], scanned: Scanned, delimiter: str) -> None:
    text = "path,label,caption\ncat/a.png,cat,a\ndog/b.png,dog,b\n".replace(",", delimiter)
    scan = scanned(manifest(text))
    assert scan.manifest.column("caption").tolist() == ["a", "b"]
    assert scan.warnings == (f"1 list read with {delimiter!r} between its columns",)


def test_a_column_twice_is_refused(manifest: Callable[..., Path], scanned: Scanned) -> None:
    with pytest.raises(UsageError, match="'label' twice"):
        scanned(manifest("path,label,label\ncat/a.png,cat,dog\n"))


def test_images_elsewhere_need_their_folder_named(
    manifest: Callable[..., Path], scanned: Scanned, tmp_path: Path
) -> None:
    root, lists = tmp_path / "images", tmp_path / "lists"
    lists.mkdir()
    (lists / "abs.csv").write_text(f"path,label\n{root}/cat/a.png,cat\ndog/b.png,dog\n")
    manifest("")
    scan = scanned(lists / "abs.csv", image_root=root)
    assert list(scan.manifest.column("path")) == ["cat/a.png", "dog/b.png"] and scan.manifest.root == root.resolve()
    with pytest.raises(TooManyRejectedError, match="--image-root"):
        scanned(lists / "abs.csv")
    (lists / "out.csv").write_text("path,label\n../lists/abs.csv,cat\n")
    with pytest.raises(TooManyRejectedError, match="outside_root"):
        scanned(lists / "out.csv", image_root=root)


def test_parts_of_a_list_are_named_kept_or_left_out(manifest: Callable[..., Path], scanned: Scanned) -> None:
    file = manifest("path,label,split\ncat/a.png,cat,train\ndog/b.png,dog,fold9\n")
    with pytest.raises(UsageError, match=r"row 2: 'fold9' is not a split") as caught:
        scanned(file)
    assert "--split-map fold9=train" in caught.value.hint
    assert scanned(file, split_map={"fold9": "test"}).manifest.column("split").tolist() == ["train", "test"]
    assert list(scanned(file, split_map={"fold9": "none"}).manifest.column("path")) == ["cat/a.png"]
    assert list(scanned(file, split="train").manifest.column("path")) == ["cat/a.png"]
    (origin,) = {one.origin for one in scanned(file, split="train").splits if one.images}
    assert origin == "column 'split'"
    (origin,) = {one.origin for one in scanned(manifest("path,label\ncat/a.png,cat\n")).splits if one.images}
    assert origin == "the source names no splits"
    manifest("path,label,split\ncat/a.png,cat,train\ndog/b.png,dog,fold9\n")
    assert list(scanned(file, split="fold9").manifest.column("path")) == ["dog/b.png"]
