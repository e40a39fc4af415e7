"""Folders, images, metadata, cards and sidecars."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.sources import Rejection
from dcdm_cli.data.writers import (
    METADATA_COLUMNS,
    class_folders,
    save_image,
    write_card,
    write_metadata,
    write_rejected,
    write_sidecars,
)
from dcdm_cli.errors import MismatchError, UsageError

from .conftest import encoded, picture


def test_plain_names_stay() -> None:
    names = ["cat", "0", "10", "a-b_c.d", "N02085620"]
    assert class_folders(names) == names


def test_unsafe_characters_become_underscores() -> None:
    assert class_folders(["test tube", "café", "[/x]"]) == ["test_tube", "caf_", "__x_"]


def test_names_that_fall_together_get_a_hash_and_plain_ones_stay() -> None:
    folders = class_folders(["a b", "a_b", "a/b", "A?B"])
    assert folders[1] == "a_b"
    assert all(re.fullmatch(r"a_b-[0-9a-f]{8}", folder, re.IGNORECASE) for folder in (folders[0], *folders[2:]))
    assert len(set(folders)) == 4


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", "CON", "con.txt", "Lpt1", ".hidden", "end.", "x" * 101, "é" * 200]
)
def test_names_no_file_system_should_see(name: str) -> None:
    (folder,) = class_folders([name])
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", folder)
    assert folder != name and re.search(r"-[0-9a-f]{8}$", folder)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=150), max_size=30, unique=True))
def test_folders_are_safe_unique_and_independent_of_order(names: list[str]) -> None:
    folders = class_folders(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", folder) for folder in folders)
    assert class_folders(names[::-1]) == folders[::-1]


def test_one_class_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="share a folder"):
        class_folders(["a", "a"])


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".PNG"])
def test_images_are_saved_whole_and_bare(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    (tmp_path / "source.jpg").write_bytes(encoded(picture(), "JPEG", exif=exif, comment=b"secret", icc_profile=b"icc"))
    with Image.open(tmp_path / "source.jpg") as source:
        save_image(source, tmp_path / f"out/x{suffix}")
        assert "exif" in source.info
        with Image.open(tmp_path / f"out/x{suffix}") as saved:
            assert not saved.getexif() and not {"comment", "icc_profile", "exif"} & set(saved.info)
            if suffix != ".jpg":
                assert (np.asarray(saved) == np.asarray(source)).all()
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"x{suffix}"]


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.gif"):
        save_image(picture(), tmp_path / "x.gif")


def test_every_metadata_row_has_every_column_with_one_type(tmp_path: Path) -> None:
    rows = [
        {"file_name": "cat/a.png", "label": np.int64(0), "class_name": "cat", "target_difficulty": 1, "extra": 2},
        {
            "file_name": "dog/b.png",
            "label": 1,
            "class_name": "dög",
            "target_difficulty": np.float32("nan"),
            "extra": 0.5,
        },
        {"file_name": "dog/c.png", "label": 1, "class_name": "dog", "measured_difficulty": math.inf, "synthetic": True},
    ]
    write_metadata(tmp_path, rows)
    lines = (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert {tuple(row) for row in read} == {(*METADATA_COLUMNS, "extra")}
    assert [row["target_difficulty"] for row in read] == [1.0, None, None]
    assert isinstance(read[0]["target_difficulty"], float) and isinstance(read[0]["label"], int)
    assert [type(row["extra"]) for row in read] == [float, float, type(None)]
    assert read[2]["measured_difficulty"] is None and read[2]["synthetic"] is True and "dög" in lines[1]


@pytest.mark.parametrize("path", ["/abs.png", "../up.png", "a/../../b.png"])
def test_metadata_names_only_files_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="not inside"):
        write_metadata(tmp_path, [{"file_name": path, "label": 0, "class_name": "x"}])
    assert not list(tmp_path.iterdir())


def test_hostile_names_stay_inside_the_cards_json_block(tmp_path: Path) -> None:
    names = ["cat", "---\nconfigs: x", "```\n# title", "<script>", "{facts}", "\u2028\x85", '"']
    write_card(tmp_path, names, {"base model": "x: y\n---", "Licence": "`mit`"})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train/**"}]}
    ]
    assert "synthetic" in yaml.safe_load(front)["tags"] and "data_files={" in body
    block = body.split("```json\n")[1].split("\n```")[0]
    assert json.loads(block) == {"class_names": names, "base model": "x: y\n---", "Licence": "`mit`"}
    assert body.count("```") == 4


def test_rejected_images_are_listed(tmp_path: Path) -> None:
    write_rejected(
        tmp_path / "rejected.jsonl", [Rejection("a\n.png", "truncated", "half"), Rejection("b", "no_label", "")]
    )
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert (
        json.loads(lines[0]) == {"path": "a\n.png", "reason": "truncated", "detail": "half", "split": ""}
        and len(lines) == 2
    )


def test_sidecars_mirror_the_images(tmp_path: Path) -> None:
    rows = [
        {"path": "cat/a.b.png", "caption": "a cât\nsleeping"},
        {"path": "dog/c.png", "caption": "a dog"},
        {"path": "dog/c.jpg", "caption": "a dog"},
        {"path": "dog/d.png"},
    ]
    assert write_sidecars(Manifest.from_rows(rows, ["cat", "dog"]), tmp_path) == 2
    assert (tmp_path / "cat/a.b.txt").read_bytes() == "a cât sleeping\n".encode()
    assert sorted(file.name for file in tmp_path.rglob("*.txt")) == ["a.b.txt", "c.txt"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"path": "a.png", "caption": "one"}, {"path": "a.jpg", "caption": "two"}],
        [{"path": "../a.png", "caption": "one"}],
        [{"path": "/a.png", "caption": "one"}],
    ],
)
def test_sidecars_that_cannot_be_written_are_refused(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    with pytest.raises(UsageError):
        write_sidecars(Manifest.from_rows(rows, ["x"]), tmp_path)


def test_a_link_below_the_sidecars_folder_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "copies/cat").symlink_to(tmp_path / "mine")
    manifest = Manifest.from_rows([{"path": "cat/a.png", "caption": "a cat", "label": 0}], ["cat"])
    with pytest.raises(MismatchError, match="leads out of"):
        write_sidecars(manifest, tmp_path / "copies")
    assert list((tmp_path / "mine").iterdir()) == []
