"""Captions and labels that stand beside images: text files, and metadata in the layout of `datasets`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdm_cli.data.sources import Scan
from dcdm_cli.errors import UsageError

Put = Callable[..., Path]
Scanned = Callable[..., Scan]


def captions(scan: Scan) -> dict[str, str | None]:
    return {row["path"]: row["caption"] for row in scan.manifest.rows()}


def test_text_files_beside_images_are_captions(put: Put, scanned: Scanned) -> None:
    for seed, name in enumerate(("a", "b", "c", "d")):
        put(f"cat/{name}.png", seed)
    folder = put("cat/e.png", 5).parent
    (folder / "a.txt").write_text("\ufeff手写, écrit\nanother\n", "utf-8")
    (folder / "b.caption").write_text("a cat")
    (folder / "c.txt").write_text("0 0.5 0.5 0.1 0.1\n")  # a box
    (folder / "d.txt").write_bytes(b"\xff\xfe\x00")
    scan = scanned()
    assert list(captions(scan).values()) == ["手写, écrit", "a cat", None, None, None]
    assert "2 text files beside images that hold no caption" in scan.warnings
    assert set(captions(scanned(caption_files=False)).values()) == {None}


@pytest.mark.parametrize("column", ["caption", "text"])
def test_metadata_files_hold_captions_wherever_they_lie(
    put: Put, scanned: Scanned, tmp_path: Path, column: str
) -> None:
    for seed, name in enumerate(("train/cat/a", "train/dog/b", "test/cat/c")):
        put(f"{name}.png", seed)
    root = tmp_path / "images"
    (root / "train/metadata.jsonl").write_text(json.dumps({"file_name": "cat/a.png", column: "one"}) + "\n")
    (root / "test/cat/metadata.csv").write_text(f"file_name,{column}\nc.png,three\n")
    assert captions(scanned()) == {"test/cat/c.png": "three", "train/cat/a.png": "one", "train/dog/b.png": None}
    with pytest.raises(UsageError, match="no column words"):
        scanned(caption_column="words")


def test_images_without_class_folders_take_their_label_from_metadata(
    put: Put, scanned: Scanned, tmp_path: Path
) -> None:
    rows = []
    for split in ("train", "test"):
        for seed, label in enumerate(("cat", "dog")):
            put(f"{split}/{label}{seed}.png", 10 * len(rows) + seed)
            rows.append({"file_name": f"{split}/{label}{seed}.png", "label": label})
        lines = [json.dumps({**row, "file_name": row["file_name"].partition("/")[2]}) for row in rows[-2:]]
        (tmp_path / "images" / split / "metadata.jsonl").write_text("\n".join(lines))
    manifest = scanned().manifest
    assert manifest.class_names == ("cat", "dog") and manifest.column("split").tolist() == ["test"] * 2 + ["train"] * 2


def test_a_named_label_column_counts_instead_of_the_folders(put: Put, scanned: Scanned, tmp_path: Path) -> None:
    put("AC_DC/a.png", 1)
    put("cat/b.png", 2)
    rows = [{"file_name": "AC_DC/a.png", "kind": "AC/DC"}, {"file_name": "cat/b.png", "kind": "cat"}]
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert scanned(label_column="kind").manifest.class_names == ("AC/DC", "cat")
    assert scanned().manifest.class_names == ("AC_DC", "cat")


def test_images_that_share_a_caption_file_are_counted(put: Put, scanned: Scanned) -> None:
    for seed, name in enumerate(("a.png", "a.webp", "b.png")):
        put(f"cat/{name}", seed)
    folder = put("dog/c.png", 4).parent.parent / "cat"
    (folder / "a.txt").write_text("a cat")
    (folder / "b.txt").write_text("a cat")
    shared = [warning for warning in scanned().warnings if "share a caption file" in warning]
    assert [warning.partition(" ")[0] for warning in shared] == ["1"]
