"""Results that lie beside the images they were made from: the next scan reads the same images, and none of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import DatasetDict

from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.manifest import write_manifest
from dcdm_cli.data.sources import Scan, fingerprint
from dcdm_cli.data.trees import OWN, is_run_folder
from dcdm_cli.errors import UsageError
from dcdm_cli.run.store import RunFolder

from .conftest import encoded, picture
from .test_scan_tables import dataset, pictures, write_parquet
from .test_scan_tars import samples, write_tar

Scanned = Callable[..., Scan]


def put_parquet(folder: Path, first: int = 0) -> None:
    write_parquet(folder / "train-00000.parquet", pictures(*range(first, first + 4)), ["cat", "dog"] * 2)


def put_tars(folder: Path, first: int = 0) -> None:
    write_tar(folder / "train-00000.tar", samples(first, 4))


def put_saved(folder: Path, first: int = 0) -> None:
    dataset(*range(first, first + 4)).save_to_disk(str(folder))


def put_saved_splits(folder: Path, first: int = 0) -> None:
    DatasetDict({"train": dataset(first, first + 1), "test": dataset(first + 2, first + 3)}).save_to_disk(str(folder))


def put_generated(folder: Path, put: Callable[..., None]) -> None:
    put(folder / "data", 50)
    (folder / "shards").mkdir()
    (folder / "shards" / "output.json").write_text("{}")


def put_run(folder: Path, scan: Scan, put: Callable[..., None]) -> None:
    """What scoring, captioning and generating leave."""
    run = RunFolder(folder)
    run.create()
    with run.lock("dcdm score"):
        (folder / "records").mkdir(exist_ok=True)
        write_manifest(scan.manifest, run.samples)
        shutil.copy(run.samples, run.own_captions)
        for picture_of in (run.figures / "hardest.png", run.images / "ab" / "ab01.png"):
            picture_of.parent.mkdir(parents=True, exist_ok=True)
            picture_of.write_bytes(encoded(picture(90)))
        if not run.generated.exists():
            put_generated(run.generated, put)


@pytest.mark.parametrize("put", [put_parquet, put_tars, put_saved, put_saved_splits])
@pytest.mark.parametrize("beside", ["run", "set", "both"])
def test_a_source_is_the_same_with_results_in_it(
    tmp_path: Path, scanned: Scanned, put: Callable[..., None], beside: str
) -> None:
    source = tmp_path / "images"
    put(source)
    again = first = scanned(source)
    known = fingerprint(str(source), ScanOptions())
    for _ in range(2):
        if beside != "set":
            put_run(source / "dcdm-run", first, put)
        if beside != "run" and not (source / "made").exists():
            put_generated(source / "made", put)
        again = scanned(source)
        assert again.manifest.table.equals(first.manifest.table)
        assert fingerprint(str(source), ScanOptions()) == known
    is_saved = put in (put_saved, put_saved_splits)  # which names its own files: nothing is passed over
    assert any(warning.endswith(OWN) for warning in again.warnings) == (not is_saved)


@pytest.mark.parametrize("put", [put_parquet, put_tars])
def test_hidden_tables_are_passed_over_and_links_to_files_are_read(
    tmp_path: Path, scanned: Scanned, put: Callable[..., None]
) -> None:
    put(tmp_path / "blobs")
    [blob] = (tmp_path / "blobs").iterdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / blob.name).symlink_to(blob)  # as caches of downloads are made of
    put(tmp_path / "images" / ".trash", 50)
    (tmp_path / "images" / f"._{blob.name}").write_bytes(b"what macOS adds")
    scan = scanned(tmp_path / "images")
    assert len(scan.manifest) == 4 and scan.warnings == ("1 hidden files and folders passed over",)


@pytest.mark.parametrize("put", [put_parquet, put_tars])
def test_a_pattern_for_any_depth_passes_results_over(
    tmp_path: Path, scanned: Scanned, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "images")
    monkeypatch.chdir(tmp_path / "images")
    suffix = next(Path().iterdir()).suffix
    first = scanned(f"**/*{suffix}")
    put_run(Path("dcdm-run"), first, put)
    again = scanned(f"**/*{suffix}")
    assert again.manifest.table.equals(first.manifest.table) and any(one.endswith(OWN) for one in again.warnings)
    assert len(scanned(f"dcdm-run/generated/**/*{suffix}").manifest) == 4  # that was asked for


def test_the_folder_of_a_first_run_that_was_stopped_is_no_class(tmp_path: Path, scanned: Scanned) -> None:
    put_parquet(tmp_path / "images")
    first, run = scanned(), RunFolder(tmp_path / "images" / "dcdm-run")
    run.create()
    with run.lock("dcdm score"):
        (run.checkpoints / "scorer").mkdir(parents=True)
        run.images.mkdir()
        (run.images / "0.png").write_bytes(encoded(picture(90)))
    assert is_run_folder(run.path) and scanned().manifest.table.equals(first.manifest.table)


def test_what_a_saved_dataset_keeps_for_itself_does_not_make_it_another(tmp_path: Path) -> None:
    put_saved(tmp_path / "images")
    known = fingerprint(str(tmp_path / "images"), ScanOptions())
    (tmp_path / "images" / "cache-0123.arrow").write_bytes(b"of Dataset.map")
    assert fingerprint(str(tmp_path / "images"), ScanOptions()) == known
    put_saved(tmp_path / "other", 9)
    shutil.copytree(tmp_path / "other", tmp_path / "images", dirs_exist_ok=True)
    assert fingerprint(str(tmp_path / "images"), ScanOptions()) != known


def test_a_working_folder_that_became_a_run_folder_is_no_source(
    put: Callable[..., Path], scanned: Scanned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `figures` would be a class."""
    put("cat/a.png", 1)
    put("dog/b.png", 2)
    monkeypatch.chdir(tmp_path / "images")
    put_run(Path(), scanned("."), put_parquet)
    with pytest.raises(UsageError, match="is a run folder") as caught:
        scanned(".")
    assert "a folder of their own" in caught.value.hint
