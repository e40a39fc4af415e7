"""The loss log: it grows, it is whole after a stop, and what is trained again replaces what was there."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dcdm_cli.errors import CapabilityError
from dcdm_cli.training.step_log import COLUMNS, StepLog, Tracker


def feed(file: Path, *steps: int, loss: float = 0.5) -> None:
    log = StepLog(file)
    for step in steps:
        log.add({"step": step, "loss": loss, "lr": 1e-3, "encoder_lr": 2e-3})
    log.flush()


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_line_per_step_under_a_header(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "loss.csv"
    feed(file, 1, 2, 3)
    rows = read(file)
    assert [row["step"] for row in rows] == ["1", "2", "3"] and tuple(rows[0]) == COLUMNS
    assert rows[0]["loss"] == "0.5" and rows[0]["encoder_lr"] == "0.002"


def test_steps_that_are_made_again_replace_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "loss.csv"
    feed(file, 1, 2, 3, 4)
    # as a spreadsheet writes a number; no UTF-8; torn by a kill
    file.write_bytes(file.read_bytes() + "5.0,1,1,1,1\né,1,1,1,1\n5,0.".encode("latin-1"))
    feed(file, 3, 4, 5, loss=0.25)
    assert [(row["step"], row["loss"]) for row in read(file)] == [
        ("1", "0.5"), ("2", "0.5"), ("3", "0.25"), ("4", "0.25"), ("5", "0.25"),
    ]  # fmt: skip


def test_a_training_that_begins_anew_begins_a_new_log(tmp_path: Path) -> None:
    feed(tmp_path / "loss.csv", 1, 2, 3)
    feed(tmp_path / "loss.csv", 1)
    assert len(read(tmp_path / "loss.csv")) == 1


def test_a_tracker_that_is_not_installed_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no_such_tracker") as failed:
        Tracker("no_such_tracker", tmp_path, {})
    assert failed.value.hint == "pip install no_such_tracker"


def test_tensorboard_gets_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    Accelerator(cpu=True)  # as in training, where the tracker is opened after it
    tracker = Tracker("tensorboard", tmp_path, {"steps": 2, "lora_targets": ["to_q"]})
    for step in (1, 2):
        tracker.add({"step": step, "loss": 0.5 / step, "lr": 1e-3})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "dcdm"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
