"""A small real job that every test of a command can start from: three classes of real digits, settings for seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.data.digits import digit_images

from ..captioning.test_rewriter import save_llama
from ..opened import opened
from .runner import Finished, run

# A class that `datasets` would take for a split, and one that would be markup, a tag and a terminal escape.
CLASSES = ("one", "test tube", "[red]<script>\x1b[31m")
SPLITS = {"train": 12, "judge": 6, "test": 8}  # images per class
STAGES = ("score", "caption", "finetune", "generate", "evaluate")
# Planted where every stage runs, and looked for in all that it leaves and says.
SECRETS = {
    name: f"hf_planted{number}{name.replace('_', '').lower()}"
    for number, name in enumerate(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TRACKIO_WRITE_TOKEN", "AWS_SECRET_ACCESS_KEY")
    )
}
SETTINGS = """
preset = "digits"
[score]
steps = 12
folds = 2
repeats = 1
at_chance = "warn"
[caption]
template = "a photo of the {class}"
[judge]
steps = 10
[downstream]
steps = 3
[finetune]
steps = 8
strength = "none"
batch_size = 4
rank = 4
checkpoint_every = 4
[calibrate]
enabled = false
[generate]
steps = 2
count = 12
ratio = "none"
batch_size = 4
[evaluate]
targets = [0.2, 0.5]
per_target = 6
arms = ["real", "plain", "dcdm"]
seeds = 2
synthetic_ratio = 0.2
workers = 1
"""


def write_images(folder: Path, classes: dict[str, int], *, start: int = 0) -> Path:
    """folder/<class>/<number>.png: real digits, as many as asked for; class i shows the digit i."""
    images, labels = digit_images()
    for digit, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in np.flatnonzero(labels == digit)[start : start + count]:
            Image.fromarray(images[number]).convert("RGB").save(folder / name / f"{number:04}.png")
    return folder


def new_run(folder: Path, settings: str = SETTINGS, **replaced: str) -> Path:
    """A run folder with `settings`; replaced: `steps_8="9"` writes `steps = 9` for `steps = 8`."""
    for old, new in replaced.items():
        name, _, value = old.rpartition("_")
        assert f"{name} = {value}\n" in settings
        settings = settings.replace(f"{name} = {value}\n", f"{name} = {new}\n")
    folder.mkdir(parents=True)
    (folder / "dcdm.toml").write_text(settings)
    return folder


def document(done: Finished) -> dict[str, Any]:
    return json.loads(done.stdout)


def last_error(done: Finished) -> dict[str, Any]:
    return json.loads(done.stderr.splitlines()[-1])


@dataclass(frozen=True)
class FinishedJob:
    """run: its folder; documents: what each stage said with --json; opened: files of the run that each stage opened;
    said: everything on stdout and stderr. The environment had `SECRETS` all the time."""

    run: Path
    documents: dict[str, dict[str, Any]]
    opened: dict[str, set[str]]
    said: str


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, start = tmp_path_factory.mktemp("source") / "photos", 0
    for split, count in SPLITS.items():
        write_images(folder / split, dict.fromkeys(CLASSES, count), start=start)
        start += count
    return folder


@pytest.fixture(scope="session")
def job(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedJob:
    """Every stage has run. Read only: tests that change something take `copy`."""
    folder = new_run(tmp_path_factory.mktemp("job") / "run")
    words = {stage: [stage, "--run", folder, "--json"] for stage in STAGES}
    words["score"].insert(1, photos)
    return _finished(folder, words)


@pytest.fixture(scope="session")
def extended(job: FinishedJob, tmp_path_factory: pytest.TempPathFactory) -> FinishedJob:
    """The job, gone on with by everything that is optional, calibrated and with an export. Read only."""
    top = tmp_path_factory.mktemp("extended")
    folder = Path(shutil.copytree(job.run, top / "run"))
    small = ("calibrate.enabled=true", "calibrate.points=8", "calibrate.images=4", "distill.steps=2", "score.steps=12",
             "evaluate.plan_folds=2", "evaluate.density_images=10", "evaluate.atlas_targets=[0.5]",
             "caption.llm_prompts=2", "caption.llm_tokens=4")  # fmt: skip
    settings = [word for setting in small for word in ("--set", setting)]
    prompts = ["--method", "llm", "--llm", str(save_llama(top / "llama"))]
    words = {
        "calibrate": ["finetune"], "distill": ["distill"], "export": ["export"], "generate": ["generate", "--force"],
        "check": ["evaluate", "check"], "filter": ["evaluate", "filter"], "atlas": ["evaluate", "atlas"],
        "plan": ["evaluate", "plan"], "prompts": ["caption", *prompts],
    }  # fmt: skip
    return _finished(
        folder, {name: [*command, *settings, "--run", folder, "--json"] for name, command in words.items()}
    )


def _finished(folder: Path, words: Mapping[str, Sequence[str | Path]]) -> FinishedJob:
    documents, found, said = {}, {}, ""
    for name, command in words.items():
        with opened(folder) as found[name]:
            done = run(*command, env=SECRETS)
        documents[name], said = document(done), said + done.stdout + done.stderr
    return FinishedJob(folder, documents, found, said)


@pytest.fixture
def copy(job: FinishedJob, tmp_path: Path) -> Path:
    return Path(shutil.copytree(job.run, tmp_path / "copy"))


@pytest.fixture
def scored(job: FinishedJob, tmp_path: Path) -> Path:
    """A run that is as far as captions."""
    folder = tmp_path / "scored"
    later = ("adapter", "generated", "evaluation", "cache", "finetune.json", "generate.json", "evaluate.json")
    leave = shutil.ignore_patterns(*later)
    return Path(shutil.copytree(job.run, folder, ignore=leave))


@pytest.fixture
def dcdm(tmp_path: Path) -> Callable[..., Finished]:
    """Runs a command in an empty folder."""
    return lambda *words, **how: run(*words, **{"cwd": tmp_path, **how})
