"""`dcdm finetune` as a group of processes: the loss curve is that of one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from PIL import Image

from dcdm_cli import Run
from dcdm_cli.console import Console
from dcdm_cli.data.digits import digit_images
from dcdm_cli.data.manifest import Manifest, write_manifest
from dcdm_cli.model.adapter import read_adapter
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.finetune import run_finetune, run_group

SETTINGS = """
device = "cpu"
threads = 1
[calibrate]
enabled = false
[finetune]
base = "tiny"
resolution = 32
steps = 4
rank = 2
alpha = 2
hidden = 8
warmup_steps = 2
lr = 1e-2
"""
ROOT = Path(__file__).parents[2]


def prepared(folder: Path) -> RunFolder:
    """Scored and captioned: twelve digits."""
    run = RunFolder(folder)
    run.create()
    run.config_file.write_text(SETTINGS)
    rows = []
    for index, (image, label) in enumerate(zip(*digit_images(), strict=True)):
        if index == 12:
            break
        Image.fromarray(image).save(folder / f"{index}.png")
        row = {"sample_id": f"{index:016x}", "path": f"{index}.png", "label": int(label), "class_name": str(label)}
        rows.append(row | {"split": "train", "synthetic": False, "difficulty": index / 12, "caption": f"a {label}"})
    write_manifest(Manifest.from_rows(rows, [str(i) for i in range(10)], folder), run.samples)
    for stage, settings in {"score": {"data": {}, "score": {}}, "caption": {}}.items():
        run.run(Stage(stage, settings, {}), lambda: Outcome([run.samples], "x"))
    return run


def alone(run: RunFolder, batch: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = {"finetune.batch_size": batch}
    resolved = resolve(flags=flags, run_file=run.config_file)
    results = run_finetune(Session(run, resolved, Console(quiet=True), False, False, flags)).results
    torch.set_num_threads(threads)
    return results


LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0 -m dcdm_cli finetune"
)


def test_a_group_runs_no_module_of_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, words = prepared(tmp_path / "run"), list[str]()

    class Seen:
        def __init__(self, asked: list[str], *_: object) -> None:
            words.extend(asked)

        def run(self) -> None: ...

    monkeypatch.setattr("dcdm_cli.workers.ranks.Group", Seen)
    monkeypatch.setattr(sys, "argv", ["dcdm", "--version"])
    run_group(Session(run, resolve(run_file=run.config_file), Console(quiet=True), False, False, {}), ("2",))
    (tmp_path / "typer.py").write_text("raise SystemExit('code of somebody else')\n")
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}"}
    said = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_nobody_else_writes_before_calibration_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, held = prepared(tmp_path / "run"), list[bool]()

    def tuned(session: Session) -> StageRecord:
        with session.run.lock("dcdm finetune"):
            return session.run.require("caption")

    def calibrated(session: Session) -> None:
        try:
            FileLock(session.run.path / ".lock").acquire(timeout=0)
        except Timeout:
            held.append(True)

    monkeypatch.setattr("dcdm_cli.stages.finetune.run_finetune", tuned)
    monkeypatch.setattr("dcdm_cli.stages.calibrate.calibrate_chosen", calibrated)
    Run(run.path, quiet=True).finetune()
    assert held == [True]
    with FileLock(run.path / ".lock").acquire(timeout=0):
        pass  # free again


@pytest.mark.slow
@pytest.mark.parametrize("start", [LAUNCH, "-m dcdm_cli finetune --devices 2"])
def test_two_processes_learn_what_one_learns(tmp_path: Path, start: str) -> None:
    """accelerate starts the group as it would for two GPUs, or we do; --device cpu makes it gloo."""
    group = prepared(tmp_path / "two")
    command = [*start.split(), "--run", str(group.path), "--batch-size", "2", "--json"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}", "OMP_NUM_THREADS": "1"}
    made = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)  # one document: the other process says nothing
    assert (found["processes"], found["global_batch"]) == (2, 4)
    expected = alone(prepared(tmp_path / "one"), 4)
    assert expected["global_batch"] == 4
    assert [step for step, _ in found["losses"]] == [step for step, _ in expected["losses"]] == [1, 2, 3, 4]
    assert [loss for _, loss in found["losses"]] == pytest.approx([loss for _, loss in expected["losses"]], abs=1e-5)
    assert read_adapter(group.adapter).class_names == tuple(str(i) for i in range(10))
    assert not group.checkpoints.joinpath("adapter").exists()
