"""A run folder that has been scored, captioned and fine-tuned, made without doing any of it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest, write_manifest
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage

from ..generation.conftest import adapter
from ..generation.fakes import NAMES

__all__ = ["adapter"]
SETTINGS = {
    "generate.steps": 2, "generate.scheduler": "dpmpp", "generate.clip_range": 4.0, "generate.batch_size": 4,
    "generate.decode_batch": 4, "generate.ratio": 0.5, "generate.shard_size": 8, "generate.calibrated": False,
    "device": "cpu",
}  # fmt: skip
REAL = (20, 12, 8)  # images per class
Open = Callable[..., Session]


@pytest.fixture
def run(adapter: Path, tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", adapter)


def make_run(path: Path, adapter: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    shutil.copytree(adapter, folder.adapter)
    labels = np.repeat(np.arange(len(NAMES)), REAL)
    rows = [
        {
            "sample_id": f"{i:016x}", "path": f"{i}.png", "label": label, "class_name": NAMES[label], "split": "train",
            "synthetic": False, "difficulty": i / len(labels), "caption": f"a photo of a {NAMES[label]}",
        }
        for i, label in enumerate(labels.tolist())
    ]  # fmt: skip
    write_manifest(Manifest.from_rows(rows, NAMES), folder.samples)
    folder.run(Stage("finetune", {}, {}), lambda: Outcome([folder.adapter], "x"))
    return folder


@pytest.fixture
def session(run: RunFolder) -> Open:
    """Opens the run as a command would, with flags as keyword arguments: generate__count=3."""

    def open(force: bool = False, as_json: bool = True, **flags: object) -> Session:
        given = {name.replace("__", "."): value for name, value in flags.items()}
        console = Console(as_json=as_json, out=io.StringIO())
        return Session(run, resolve(flags=SETTINGS | given), console, force, False, given)

    return open
