"""One real export of the embedded base, made by the command itself and shared by every test that needs one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dcdm_cli.run.store import Outcome, RunFolder, Stage
from tests.generation.conftest import adapter  # noqa: F401  a fixture

from .tensorrt_rtx import load_rtx

DCDM = (sys.executable, "-m", "dcdm_cli")


def dcdm(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    wide = {**os.environ, "COLUMNS": "500"}
    made = subprocess.run([*DCDM, *words], capture_output=True, text=True, check=False, timeout=600, env=wide)
    assert made.returncode == code, made.stderr
    assert "Warning" not in made.stderr and "Traceback" not in made.stderr
    return made


def new_run(path: Path, adapter: Path) -> RunFolder:  # noqa: F811
    """A run folder as fine-tuning leaves it."""
    run = RunFolder(path)
    run.create()
    shutil.copytree(adapter, run.adapter)
    run.run(Stage("finetune", {}, {}), lambda: Outcome([run.adapter], "adapter"))
    return run


@pytest.fixture(scope="session")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:  # noqa: F811
    """The run folder with a float32 export, read only, and what the command wrote to stdout."""
    run = new_run(tmp_path_factory.mktemp("exported") / "run", adapter)
    return run, dcdm("export", "--run", str(run.path), "--threads", "1", "--json").stdout


@pytest.fixture(scope="session")
def exported_fp16(
    exported: tuple[RunFolder, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, subprocess.CompletedProcess[str]]:
    """The same with half precision, made in a copy of the first."""
    run = copy_of(exported[0], tmp_path_factory.mktemp("half") / "run")
    return run, dcdm("export", "--run", str(run.path), "--threads", "1", "--precision", "fp16")


@pytest.fixture
def run(exported: tuple[RunFolder, str], tmp_path: Path) -> RunFolder:
    """A copy to change."""
    return copy_of(exported[0], tmp_path / "run")


def copy_of(run: RunFolder, path: Path) -> RunFolder:
    """As if the export had been quick: on a busy machine it takes longer than a minute, and what did is asked for."""
    copy = RunFolder(shutil.copytree(run.path, path))
    file = copy.path / "records/export.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 1.0}))
    return copy


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    """TensorRT-RTX's Python module: a real NVIDIA parser and builder that need no GPU."""
    return load_rtx()
