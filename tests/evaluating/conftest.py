"""A finished run on the embedded digits, with settings that take seconds; evaluated in this process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.console import Console
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.caption import run_caption
from dcdm_cli.stages.finetune import run_finetune
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.score import run_score

NET = {"model_args": {"channels": [8, 12, 16, 32], "stem_width": 8}}
SETTINGS: dict[str, Any] = {
    "preset": "digits",
    "device": "cpu",
    "data": {"source": "digits"},
    "score": {"steps": 20, "folds": 2, "repeats": 1, "at_chance": "warn", **NET},
    "judge": {"steps": 60, **NET},
    "downstream": {"steps": 4, **NET},
    "finetune": {"steps": 2, "rank": 2, "strength": "none"},
    "calibrate": {"enabled": False, "points": 3, "images": 10},
    "generate": {"steps": 2, "count": 20, "difficulty_guidance": 2.0},
    "evaluate": {
        "targets": [0.2, 0.5], "per_target": 10, "arms": ["real", "dcdm"], "seeds": 2, "synthetic_ratio": 0.1,
        "density_images": 10, "plan_folds": 2, "atlas_targets": [0.2, 0.5], "atlas_classes": 2, "workers": 1,
    },
}  # fmt: skip


def session_of(folder: Path, **given: Any) -> Session:
    """given: flags, with __ for the dot."""
    flags = {f"{s}.{k}": v for s, part in SETTINGS.items() if isinstance(part, dict) for k, v in part.items()}
    flags |= {key: value for key, value in SETTINGS.items() if not isinstance(value, dict)}
    flags |= {key.replace("__", "."): value for key, value in given.items()}
    return Session(RunFolder(folder), resolve(flags=flags), Console(quiet=True), False, False, flags)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    session = session_of(folder)
    for stage in (run_score, run_caption, run_finetune, run_generate):
        stage(session)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def shared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that tests add to, and none takes from."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("shared") / "run"))


@pytest.fixture(scope="session")
def experimented(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that only the experiments add to: what they leave behind is counted."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("experimented") / "run"))


def forced(session: Session) -> Session:
    return replace(session, force=True)


def coloured(folder: Path, classes: int, each: int) -> Path:
    """folder/<class>/<number>.png: squares of a colour per class, no two of them the same."""
    rng = np.random.default_rng(0)
    for label, colour in enumerate(rng.integers(0, 200, (classes, 3))):
        (folder / f"class {label:02}").mkdir(parents=True)
        for number in range(each):
            pixels = (colour + rng.integers(0, 55, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label:02}" / f"{number}.png")
    return folder
