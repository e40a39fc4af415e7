"""Sheets while fine-tuning goes on: they show the network as it is and change nothing of what comes out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcdm_cli.console import Console
from dcdm_cli.data.digits import digit_images
from dcdm_cli.data.manifest import Manifest, write_manifest
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.finetune import run_finetune

SETTINGS = {
    "preset": "digits", "device": "cpu", "finetune.steps": 4, "finetune.batch_size": 2, "finetune.rank": 2,
    "finetune.hidden": 8, "generate.steps": 2, "finetune.views": 1, "finetune.strength": "none",
}  # fmt: skip
NAMES = ("0", "1")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    images, labels = digit_images()
    rows = []
    for i in np.flatnonzero(labels < 2)[:8].tolist():
        Image.fromarray(images[i]).save(run.path / f"{i}.png")
        name = NAMES[labels[i]]
        rows.append(
            {
                "sample_id": f"{i:016x}", "path": f"{i}.png", "label": int(labels[i]), "class_name": name,
                "split": "train",
                "difficulty": 0.1 * len(rows), "caption": f"a photo of the digit {name}",
            }
        )  # fmt: skip
    write_manifest(Manifest.from_rows(rows, NAMES, run.path), run.samples)
    for stage in ("score", "caption"):
        run.run(Stage(stage, {}, {}), lambda: Outcome([run.samples], "x"))
    return run


def trained(run: RunFolder, **changes: object) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    flags = SETTINGS | {f"finetune.{name}": value for name, value in changes.items()}
    run_finetune(Session(run, resolve(flags=flags), Console(quiet=True), True, False, flags))
    return load_file(run.adapter / "pytorch_lora_weights.safetensors")


def test_sheets_and_loss_log_change_nothing_of_the_adapter(run: RunFolder) -> None:
    plain, config = trained(run), (run.adapter / "config.json").read_text()
    watched = trained(run, sample_every=2)
    assert plain.keys() == watched.keys() and all(torch.equal(plain[name], watched[name]) for name in plain)
    assert (run.adapter / "config.json").read_text() == config
    sheets = sorted((run.figures / "samples" / "adapter").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-00000002.png", "step-00000004.png"]
    first, second = (np.asarray(Image.open(sheet)) for sheet in sheets)
    assert first.shape == second.shape and (first != second).any(), "four steps show"
    with (run.logs / "loss.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"] and all(float(row["loss"]) > 0 for row in rows)


def test_watching_makes_nothing_stale(run: RunFolder) -> None:
    trained(run)
    flags = SETTINGS | {"finetune.sample_every": 2}
    before = run.require("finetune").started
    session = Session(run, resolve(flags=flags), Console(quiet=True), False, False, flags)
    assert run_finetune(session).started == before
