"""The whole demo through `Run`, with settings for seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dcdm_cli import Run
from dcdm_cli.api.run import GeneratedImages
from dcdm_cli.run.store import StageRecord

TINY: dict[str, dict[str, Any]] = {
    "score": {"steps": 12, "repeats": 1, "at_chance": "warn"},
    "judge": {"steps": 3},
    "downstream": {"steps": 3},
    "finetune": {"steps": 3, "batch_size": 4, "checkpoint_every": 3, "strength": "none"},
    "calibrate": {"enabled": False},  # three steps teach no difficulty
    "generate": {"steps": 2, "attempts": 1, "ratio": None},
    "evaluate": {
        "workers": 1,
        "targets": (0.2, 0.5),
        "per_target": 10,
        "seeds": 1,
        "arms": ("real", "dcdm"),
        "synthetic_ratio": 0.1,
    },
}


def set_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings for code that opens runs itself: in the environment."""
    for section, settings in TINY.items():
        for name, value in settings.items():
            text = "none" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            monkeypatch.setenv(f"DCDM_{section}__{name}".upper(), text)


@dataclass(frozen=True)
class Demo:
    run: Run
    scored: StageRecord
    trained: StageRecord
    made: GeneratedImages
    evaluated: StageRecord


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Read only."""
    run = Run(tmp_path_factory.mktemp("demo") / "digits", preset="digits", device="cpu", quiet=True, **TINY)
    scored = run.score("digits")
    run.caption()
    trained = run.finetune()
    made = run.generate(count=20, difficulty=0.5)
    return Demo(run, scored, trained, made, run.evaluate(generate={"count": 20, "difficulty": 0.5}))


def run_in_copy(
    demo: Demo, folder: Path, pieces: Iterable[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, object]:
    """Python, piece by piece, beside a copy of the demo, where what it has scored and fine-tuned is found and not done
    again. Returns the names that are left."""
    later = shutil.ignore_patterns("generated", "evaluation", "generate.json", "evaluate.json", "dcdm.toml")
    shutil.copytree(demo.run.folder.path, folder, ignore=later)
    monkeypatch.chdir(folder.parent)
    set_tiny(monkeypatch)
    names: dict[str, object] = {}
    for number, piece in enumerate(pieces, 1):
        exec(compile(piece, f"{what} {number}", "exec"), names)
    return names
