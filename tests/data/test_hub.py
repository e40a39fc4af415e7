"""`hf:` sources: repositories as they lie on the hub, here in a folder, read by the real `datasets`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import load as datasets_load
from datasets.exceptions import DatasetGenerationError

from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.hub import hub_files
from dcdm_cli.data.sources import Scan, fingerprint
from dcdm_cli.errors import NotFoundError, UsageError

from .conftest import encoded, picture
from .test_scan_tables import dataset

Scanned = Callable[..., Scan]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`owner/name`: a relative path that exists is what `datasets` reads instead of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    return folder


def put(repository: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(encoded(picture(seed)))


def found(scan: Scan) -> list[tuple[str, str]]:
    return sorted(zip(scan.manifest.column("class_name"), scan.manifest.column("split"), strict=True))


def test_no_class_folder_is_taken_for_a_split(repository: Path, scanned: Scanned) -> None:
    put(repository, "beaker/0.png", "test tube/1[x].png", "train car/2.png", "val_x/3.png")
    scan = scanned("hf:owner/name")
    assert found(scan) == [(name, "train") for name in ("beaker", "test tube", "train car", "val_x")]
    assert all(path.is_file() for path in scan.manifest.paths())


def test_split_folders_are_splits_and_nothing_is_in_two(repository: Path, scanned: Scanned) -> None:
    classes = ("cat", "test tube")
    put(repository, *(f"{top}/{name}/0.png" for top in ("train", "test", "valid") for name in classes))
    assert found(scanned("hf:owner/name")) == sorted((n, s) for n in classes for s in ("train", "test", "judge"))
    assert found(scanned("hf:owner/name", split="validation")) == [(name, "judge") for name in classes]


def test_what_the_card_says_is_what_counts(repository: Path, scanned: Scanned) -> None:
    put(repository, "first/cat/0.png", "first/dog/1.png", "second/dog/2.png")
    files = [{"split": "train", "path": "first/**"}, {"split": "test", "path": "second/**"}]
    lines = [f"  - split: {file['split']}\n    path: {file['path']}" for file in files]
    card = "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *lines, "---", ""])
    (repository / "README.md").write_text(card)
    assert found(scanned("hf:owner/name")) == [("cat", "train"), ("dog", "test"), ("dog", "train")]


def test_tables_named_like_splits_keep_their_class_names(repository: Path, scanned: Scanned) -> None:
    (repository / "data").mkdir()
    dataset(1, 2, names=("test tube", "cat")).to_parquet(repository / "data" / "train-00000-of-00001.parquet")
    dataset(3, names=("test tube", "cat")).to_parquet(repository / "data" / "test-00000-of-00001.parquet")
    scan = scanned("hf:owner/name")
    assert scan.manifest.class_names == ("test tube", "cat")
    assert found(scan) == [("cat", "train"), ("test tube", "test"), ("test tube", "train")]
    assert found(scanned("hf:owner/name", split="test")) == [("test tube", "test")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png"], {"train": ["**"]}),
        (["train.parquet", "dev.parquet"], {"train": ["**"]}),
        (["train-0.parquet", "x/test[1].parquet"], {"train": ["train-0.parquet"], "test": ["x/test[[]1].parquet"]}),
        (["Train/a/1.png", "validation/a/1.png"], {"train": ["Train/**"], "validation": ["validation/**"]}),
        (["train/a/1.png", "test tube/1.png"], {"train": ["**"]}),
    ],
)
def test_how_files_are_grouped(names: list[str], expected: dict[str, list[str]]) -> None:
    assert hub_files(names) == expected


def test_the_revision_is_passed_on_and_the_origin_is_pinned(
    repository: Path, scanned: Scanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository, "cat/0.png", "dog/1.png")
    asked, load = [], datasets_load.dataset_module_factory

    def watched(path: str, *rest: Any, **options: Any) -> Any:
        asked.append((path, options["revision"]))
        return load(path, *rest, **options)

    monkeypatch.setattr(datasets_load, "dataset_module_factory", watched)
    scan = scanned("hf:owner/name@v1")
    assert set(asked) == {("owner/name", "v1")}
    assert scan.origin.startswith("hf:owner/name@") and len(scan.origin) > len("hf:owner/name@") + 8
    assert fingerprint("hf:owner/name@v1", ScanOptions()) != fingerprint("hf:owner/name@v2", ScanOptions())


def test_splits_must_be_known(repository: Path, scanned: Scanned) -> None:
    dataset(1).to_parquet(repository / "extra.parquet")
    (repository / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: extra\n    path: extra.parquet\n---\n")  # fmt: skip
    for split in (None, "nothing"):
        with pytest.raises(UsageError) as caught:
            scanned("hf:owner/name", split=split)
    assert "--split" in caught.value.hint
    assert found(scanned("hf:owner/name", split="extra")) == [("cat", "train")]


@pytest.mark.parametrize("error", [ConnectionError, FileNotFoundError, DatasetGenerationError])
def test_an_unreachable_hub_is_not_found(
    scanned: Scanned, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("no way there")

    monkeypatch.setattr(datasets_load, "dataset_module_factory", fail)
    with pytest.raises(NotFoundError, match="owner/name") as caught:
        scanned("hf:owner/name")
    assert "offline" in caught.value.hint


def test_offline_mode_is_not_found(scanned: Scanned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(NotFoundError, match="owner/name"):
        scanned("hf:owner/name")
