"""`dcdm check` looks at what evaluations made for themselves: generated sets, and adapters other than the run's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dcdm_cli.console import Console
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.run import run_shards
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.check import DAMAGED, run_check
from dcdm_cli.stages.doctor import Finding

from ..generation.fakes import NAMES, FakeMaker, fake_plan

SETS, ADAPTER = ("evaluation/sets/0a1b", "evaluation/sets/2c3d/0"), "evaluation/adapters/plain-4e5f"
WEIGHTS = "adapter/pytorch_lora_weights.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """With nothing but an experiment's record, two sets of its, one of them made in rounds, and an adapter."""
    run, plan = RunFolder(tmp_path / "run"), fake_plan(6, shard_size=6)
    run.create()
    for name in SETS:
        run_shards(plan, FakeMaker(), Layout(run.path / name, "folder", "png", NAMES, plan.shards), Job())
    variant = RunFolder(run.path / ADAPTER)
    variant.adapter.mkdir(parents=True)
    save_file({"lora": np.ones(9, np.float32)}, variant.path / WEIGHTS)
    variant.run(Stage("finetune", {}, {"score": "1"}), lambda: Outcome([variant.adapter], ""))
    run.run(Stage("evaluate-sweep", {}, {}), lambda: Outcome([], ""))
    return run


def damaged(run: RunFolder, *, verify: bool = False) -> list[Finding]:
    session = Session(run, resolve(), Console(quiet=True), False, False, {})
    return [one for one in run_check(session, verify=verify) if one.state == DAMAGED]


def flip(file: Path) -> None:
    """One bit, and neither size nor time."""
    content, written = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    content[-9] ^= 16
    file.write_bytes(content)
    os.utime(file, ns=(written, written))


@pytest.mark.parametrize("name", SETS)
def test_an_image_of_an_experiment_that_changed_or_is_gone_is_damage(run: RunFolder, name: str) -> None:
    assert damaged(run, verify=True) == []
    image = next((run.path / name).rglob("*.png"))
    flip(image)
    assert damaged(run) == [], "contents are read where that is asked for"
    [found] = damaged(run, verify=True)
    assert found.topic == name and f"{image.name} has other content" in found.text
    assert f"remove {run.path / name}: dcdm evaluate experiment sweep makes it again" in found.fix
    image.unlink()
    [found] = damaged(run)
    assert found.topic == name and "is gone" in found.text


def test_a_set_whose_ledger_does_not_read_stops_no_other(run: RunFolder) -> None:
    (run.path / SETS[0] / "plan.parquet").write_bytes(b"no plan")
    (run.path / SETS[1] / "train/metadata.jsonl").unlink()
    assert [found.topic for found in damaged(run)] == [*SETS]


def not_finite(file: Path) -> None:
    save_file({name: tensor * np.nan for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("file", "harm", "says"),
    [
        (WEIGHTS, flip, "has other content than it had"),
        (WEIGHTS, not_finite, "not finite"),
        (WEIGHTS, Path.unlink, "is gone"),
        ("records/finetune.json", lambda file: file.write_text("{"), "finetune.json is damaged"),
    ],
)
def test_an_adapter_of_an_experiment_that_is_damaged_is_named(
    run: RunFolder, file: str, harm: Callable[[Path], object], says: str
) -> None:
    harm(run.path / ADAPTER / file)
    found = damaged(run)
    assert {one.topic for one in found} == {ADAPTER} and any(says in one.text for one in found)
    assert all(f"remove {run.path / ADAPTER}: dcdm evaluate experiment sweep" in one.fix for one in found)
