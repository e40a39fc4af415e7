"""A table that a person has gone through: images left out, labels changed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.data.corrections import correct
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import NotFoundError, UsageError

NAMES = ("cat", "dog")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = [
        {"sample_id": f"id{i}", "path": f"{NAMES[i % 2]}/{i}.png", "label": i % 2, "class_name": NAMES[i % 2]}
        for i in range(6)
    ]
    return Manifest.from_rows(rows, NAMES, tmp_path / "photos")


def table(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "review.csv"
    file.write_text(text, "utf-8")
    return file


def test_only_marked_rows_are_left_out_by_id_or_by_path(manifest: Manifest, tmp_path: Path) -> None:
    text = f"drop,sample_id,path\nx,id0,\n,id1,\nyes,,dog/3.png\n1,,{tmp_path}/photos/cat/4.png\nno,id5,\n"
    made = correct(manifest, table(tmp_path, text), None)
    assert made.manifest.column("sample_id").tolist() == ["id1", "id2", "id5"]
    assert made.sentences == ("review.csv: 3 images left out",)


def test_a_plain_list_means_all_of_its_images(manifest: Manifest, tmp_path: Path) -> None:
    assert len(correct(manifest, table(tmp_path, "path\ncat/0.png\ndog/1.png\n"), None).manifest) == 4


def test_labels_are_changed_by_name(manifest: Manifest, tmp_path: Path) -> None:
    made = correct(manifest, None, table(tmp_path, "\ufeffnew_label;sample_id\ndog;id0\n;id1\ndog;id3\n"))
    assert made.manifest.column("label").tolist() == [1, 1, 0, 1, 0, 1]
    assert made.manifest.column("class_name").tolist()[0] == "dog"
    assert made.sentences == ("review.csv: 1 labels changed",)


def test_rows_about_generated_images_are_passed_over(manifest: Manifest, tmp_path: Path) -> None:
    text = "drop,sample_id,source\nx,id0,real\nx,id1,hard\n"
    assert len(correct(manifest, table(tmp_path, text), None).manifest) == 5


def test_rows_that_name_nothing_are_counted(manifest: Manifest, tmp_path: Path) -> None:
    made = correct(manifest, table(tmp_path, "sample_id\nid0\nid99\n"), None)
    assert made.sentences == (
        "review.csv: 1 images left out; 1 rows name no image of this source, or one that was named before",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,drop\nid0,x\n", "names no images"),
        ("sample_id,drop\nother,x\n", "none of the 1 rows"),
        ("sample_id\n" + "".join(f"id{i}\n" for i in range(6)), "leaves out every image"),
        ("sample_id,new_label\nid0,dgo\n", "no class 'dgo'"),
        ("sample_id\nid0\n", "no column 'new_label'"),
    ],
)
def test_what_cannot_be_meant_is_refused(manifest: Manifest, tmp_path: Path, text: str, says: str) -> None:
    file = table(tmp_path, text)
    relabels = "new_label" in says or "class" in says
    with pytest.raises(UsageError, match=says):
        correct(manifest, None if relabels else file, file if relabels else None)


def test_a_file_that_is_not_there(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        correct(manifest, tmp_path / "none.csv", None)


def test_a_class_that_looks_like_a_formula_comes_back_from_a_spreadsheet(tmp_path: Path) -> None:
    names = ("=1+1", "dog")
    rows = [{"sample_id": f"id{i}", "path": f"{i}.png", "label": 1, "class_name": "dog"} for i in range(2)]
    manifest = Manifest.from_rows(rows, names, tmp_path)
    made = correct(manifest, None, table(tmp_path, "new_label,sample_id\n'=1+1,id0\n=1+1,id1\n"))
    assert made.manifest.column("label").tolist() == [0, 0]
