"""A folder as the writers make it, read by the libraries people train with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from dcdm_cli.data.sources import Scan
from dcdm_cli.data.writers import class_folders, save_image, write_card, write_metadata

from .conftest import picture

CLASS_NAMES = ["beaker", "test tube", "train car", "val_x"]


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Two images per class, some classes with split words in their names."""
    root = tmp_path / "generated"
    rows = []
    for label, folder in enumerate(class_folders(CLASS_NAMES)):
        for index in range(2):
            name = f"{folder}/{label}{index}.png"
            save_image(picture(10 * label + index), root / "train" / name)
            rows.append(
                {
                    "file_name": name,
                    "label": label,
                    "class_name": CLASS_NAMES[label],
                    "synthetic": True,
                    "seed": 2**53 - 1,
                }
                | {"target_difficulty": 1.0 if index else None}
            )
    write_metadata(root / "train", rows)
    write_card(root, CLASS_NAMES, {"base model": "tiny"})
    return root


def expected() -> list[int]:
    return [label for label in range(4) for _ in range(2)]


@pytest.fixture(autouse=True)
def _quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    logging.getLogger("datasets").setLevel(logging.ERROR)


def check_rows(read: datasets.Dataset) -> None:
    assert sorted(read["label"]) == expected()
    for row in read:
        assert row["class_name"] == CLASS_NAMES[row["label"]] and row["synthetic"] is True and row["seed"] == 2**53 - 1
        assert row["image"].tobytes() in {picture(10 * row["label"] + index).tobytes() for index in range(2)}
    assert read.features["target_difficulty"].dtype == "float64"


def test_datasets_reads_the_folder(generated: Path) -> None:
    read = datasets.load_dataset(str(generated))
    assert list(read) == ["train"]
    check_rows(read["train"])


def test_datasets_reads_it_as_the_card_says(generated: Path) -> None:
    files = {"train": str(generated / "train/**")}
    check_rows(datasets.load_dataset("imagefolder", data_files=files, split="train"))


def test_torchvision_reads_the_folder(generated: Path) -> None:
    read = ImageFolder(str(generated / "train"))
    assert read.classes == class_folders(CLASS_NAMES) and read.targets == expected()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm leaves its files to the garbage collector
def test_timm_reads_the_folder(generated: Path) -> None:
    read = create_dataset("", root=str(generated), split="train")
    assert [label for _, label in read] == expected()


def test_we_read_the_folder(generated: Path, scanned: Callable[..., Scan]) -> None:
    scan = scanned(generated)
    assert scan.manifest.class_names == tuple(class_folders(CLASS_NAMES))
    assert scan.manifest.column("label").tolist() == expected() and scan.rejected == ()
    scan = scanned(generated / "train/metadata.jsonl", label_column="class_name")
    assert scan.manifest.class_names == tuple(CLASS_NAMES) and scan.rejected == ()
