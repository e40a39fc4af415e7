"""Bulk generation: nothing lost, nothing twice, and a folder that training loaders read."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.errors import InterruptedRunError, MismatchError
from dcdm_cli.generation.engine import Engine
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.run import run_plan
from dcdm_cli.run.progress import Job

from .conftest import NAMES, plan
from .fakes import fake_measure as measure


@pytest.fixture
def the_plan(engine: Engine) -> Plan:
    return plan((3, 3, 3), engine.generator)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stop_after(images: int, folder: Path) -> Job:
    done = lambda: len(list((folder / "train").rglob("*.png"))) >= images  # noqa: E731
    return Job(stop_signal=lambda: "SIGINT" if done() else None)


def test_every_row_becomes_an_image_with_its_facts(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    made = run_plan(the_plan, engine, tmp_path, Job(), measure)
    assert (len(made.manifest), made.made, made.failed) == (9, 9, 0)
    manifest = read_manifest(tmp_path / "samples.parquet")
    assert manifest.table.equals(made.manifest.table)
    assert manifest.column("sample_id").tolist() == the_plan.table["sample_id"].to_pylist()
    assert manifest.column("synthetic").all() and set(manifest.column("generator")) == {engine.generator}
    for path, s in zip(manifest.paths(), manifest.column("measured_difficulty"), strict=True):
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.size == (32, 32)
            assert np.asarray(image).mean() / 255 == pytest.approx(s, abs=1e-3)


def test_running_it_again_changes_nothing(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    run_plan(the_plan, engine, tmp_path, Job(), measure)
    before = files(tmp_path)
    again = run_plan(the_plan, engine, tmp_path, Job(), measure)
    assert again.made == 0 and files(tmp_path) == before


def test_a_stopped_run_goes_on_to_the_same_folder(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    run_plan(the_plan, engine, tmp_path / "through", Job(), measure)
    with pytest.raises(InterruptedRunError, match=r"[48] of 9 images are finished") as caught:
        run_plan(the_plan, engine, tmp_path / "stopped", stop_after(1, tmp_path / "stopped"), measure)
    kept = int(str(caught.value).split("; ")[1].split()[0])
    resumed = run_plan(the_plan, engine, tmp_path / "stopped", Job(), measure)
    assert resumed.made == 9 - kept
    through, stopped = files(tmp_path / "through"), files(tmp_path / "stopped")
    through.pop("samples.parquet"), stopped.pop("samples.parquet")  # they name their folder
    assert through == stopped  # the batches are the same, so every byte is


def test_stray_files_and_lost_images_are_repaired(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    run_plan(the_plan, engine, tmp_path, Job(), measure)
    before = files(tmp_path)
    lost = tmp_path / read_manifest(tmp_path / "samples.parquet").column("path")[5]
    lost.unlink()
    (lost.parent / "x.png.part").write_bytes(b"half")
    again = run_plan(the_plan, engine, tmp_path, Job(), measure)
    assert (len(again.manifest), again.made) == (9, 5)  # from the batch with the lost image on
    assert files(tmp_path) == before


def test_another_plan_is_refused_and_the_images_stay(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    run_plan(the_plan, engine, tmp_path, Job())
    before = files(tmp_path)
    with pytest.raises(MismatchError, match="holds images of another plan") as caught:
        run_plan(plan((1, 1, 1), engine.generator), engine, tmp_path, Job())
    assert "--force" in caught.value.hint and files(tmp_path) == before


def test_blank_images_are_counted_not_written(
    engine: Engine, the_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcdm_cli.generation import engine as module

    decode = module.decode_latents

    def first_is_blank(*args: object) -> np.ndarray:
        images = decode(*args)  # type: ignore[arg-type]
        images[0] = 128
        return images

    monkeypatch.setattr(module, "decode_latents", first_is_blank)
    made = run_plan(the_plan, engine, tmp_path, Job())
    assert (len(made.manifest), made.failed) == (6, 3)
    assert len(list((tmp_path / "train").rglob("*.png"))) == 6
    assert run_plan(the_plan, engine, tmp_path, Job()).made == 0  # known to be blank: not tried again


def test_without_a_scorer_there_is_no_measured_difficulty(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    made = run_plan(the_plan, engine, tmp_path, Job())
    assert np.isnan(made.manifest.column("measured_difficulty")).all()


def test_training_loaders_read_it(engine: Engine, the_plan: Plan, tmp_path: Path) -> None:
    made = run_plan(the_plan, engine, tmp_path / "generated", Job(), measure).manifest
    folder = tmp_path / "generated"
    folders = ["test_tube", "two", "zero"]  # sorted, as torchvision and timm number them
    theirs = ImageFolder(str(folder / "train"))
    assert theirs.classes == folders and len(theirs) == 9
    assert len(create_dataset("", root=str(folder / "train"))) == 9
    for loaded in (
        datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")),
        datasets.load_dataset(
            "imagefolder", data_files={"train": f"{folder}/train/**"}, split="train", cache_dir=str(tmp_path / "cache2")
        ),
    ):
        assert len(loaded) == 9
        by_name = {(row["class_name"], row["label"]) for row in loaded.remove_columns("image")}
        assert by_name == {(name, label) for label, name in enumerate(NAMES)}
        assert sorted(loaded["measured_difficulty"]) == pytest.approx(sorted(made.column("measured_difficulty")))
        assert loaded[0]["image"].size == (32, 32)
