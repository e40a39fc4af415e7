"""Snapshots of a choice of strength that was stopped are what fine-tuning has left, or are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from torch import nn

from dcdm_cli.model.adapter import AdapterInfo
from dcdm_cli.run.progress import Job
from dcdm_cli.run.seals import change_of_files, seal_files
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages import adapter
from dcdm_cli.stages.adapter import TrainingRows, refuse_changed_snapshots, snapshot_folder

STEPS = (2, 4, 6)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Training is over: checkpoints of steps 3 and 6, and all snapshots."""
    run = RunFolder(tmp_path / "run")
    for step in (3, 6):
        (run.checkpoints / "adapter" / f"step-{step:08d}").mkdir(parents=True)
    for step in STEPS:
        place = snapshot_folder(run, run.adapter) / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "lora.safetensors").write_bytes(b"weights")
        (place / "config.json").write_text("{}")
        seal_files(place)
    return run


def left(run: RunFolder) -> tuple[list[int], list[int]]:
    """Steps of the checkpoints and of the snapshots that are still there."""
    places = run.checkpoints / "adapter", snapshot_folder(run, run.adapter)
    first, second = ([int(p.name[5:]) for p in sorted(place.glob("step-*")) if p.is_dir()] for place in places)
    return first, second


def said_of(run: RunFolder) -> list[str]:
    said: list[str] = []
    refuse_changed_snapshots(run, run.adapter, STEPS, Job(warn=said.append))
    return said


def test_what_was_left_is_believed(run: RunFolder) -> None:
    assert said_of(run) == [] and left(run) == ([3, 6], [2, 4, 6])
    for note in snapshot_folder(run, run.adapter).glob("*.seal"):
        note.unlink()
    assert said_of(run) == [], "as are those from before there were seals"


@pytest.mark.parametrize(
    ("step", "kept"), [(2, ([], [4, 6])), (4, ([3], [2, 6])), (6, ([3], [2, 4]))]
)  # fmt: skip
@pytest.mark.parametrize("how", ["bit", "half", "gone", "folder", "seal"])
def test_training_goes_on_from_before_one_that_has_changed(
    run: RunFolder, step: int, kept: tuple[list[int], list[int]], how: str
) -> None:
    place = snapshot_folder(run, run.adapter) / f"step-{step:08d}"
    file = place.with_suffix(".seal") if how == "seal" else place / "lora.safetensors"
    if how == "folder":
        file.unlink()
        (place / "config.json").unlink()
        place.rmdir()
    elif how == "gone":
        file.unlink()
    else:
        file.write_bytes(b"w" if how == "half" else b"Weights")
    (said,) = said_of(run)
    assert f"step-{step:08d} " in said and "makes it again" in said
    assert left(run) == kept


def test_before_training_has_come_there_nothing_is_missed(tmp_path: Path) -> None:
    assert said_of(RunFolder(tmp_path)) == []


def test_fine_tuning_seals_each_snapshot_as_it_leaves_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_save", lambda folder, *_: (folder / "lora.safetensors").write_bytes(b"others"))
    info = AdapterInfo("tiny", "f" * 32, None, ("a",), 32, None, {})
    place, network = snapshot_folder(run, run.adapter), cast(Any, nn.Module())
    shown = adapter._snapshots(place, TrainingRows(snapshots=(2, 4)), info, None, Job())
    assert shown is not None and shown.steps == (2, 4)
    shown.keep(2, network)
    assert change_of_files(place / "step-00000002") == ""
    (place / "step-00000002" / "lora.safetensors").write_bytes(b"Others")
    assert "lora.safetensors has other content" in change_of_files(place / "step-00000002")
    shown.keep(2, network)
    assert change_of_files(place / "step-00000002") == ""
