"""A finished `dcdm demo` run as the benchmarks use it: settings, images, scorer, judge, and plans in its spirit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.data.manifest import Manifest, read_manifest
from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.generation.plan import PlanInputs
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import Config
from dcdm_cli.run.store import RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """folder: of a run that `dcdm demo` has finished."""

    folder: RunFolder
    config: Config

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        folder = RunFolder(path)
        if folder.record("evaluate") is None:
            sys.exit(f"{path} is not a finished run; make one first: dcdm demo --run {path}")
        flags: dict[str, Any] = {} if folder.config_file.is_file() else {"preset": "digits"}
        return cls(folder, resolve(flags=flags, run_file=folder.config_file).config)

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder.samples)

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer.load(self.folder.scorer)

    def copy_control(self, to: Path) -> RunFolder:
        """The control as a run of its own: LoRA without difficulty, the record of its fine-tuning, the run's settings.

        It lies inside the run, where nothing is added to it.
        """
        folders = map(RunFolder, sorted((self.folder.evaluation / "adapters").glob("plain-*")))
        finished = {record.started: folder for folder in folders if (record := folder.record("finetune"))}
        if not finished:
            sys.exit(f"{self.folder.path} has no plain LoRA; let it finish: dcdm demo --run {self.folder.path}")
        shutil.copytree(finished[max(finished)].path, to)
        shutil.copyfile(self.folder.config_file, to / self.folder.config_file.name)
        return RunFolder(to)

    def plan_inputs(self, calibration: Any = None) -> PlanInputs:
        train = self.manifest.split("train")
        captions: list[list[str]] = [[] for _ in train.class_names]
        for label, caption in zip(train.column("label"), train.column("caption"), strict=True):
            captions[label].append(caption)
        real = np.asarray(train.column("difficulty"), np.float32)
        return PlanInputs(train.class_names, captions, real, self.config.generate.difficulty_cap, calibration)

    @cached_property
    def judge(self) -> Any:
        """Trained on images that the scorer never saw, as `dcdm evaluate` does."""
        images = self.manifest.split("judge")
        classes = len(self.manifest.class_names)
        return train_classifier(images.paths(), images.column("label"), classes, self.config.judge, 0, "cpu")

    def judge_agrees(self, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        return predict_logits(self.judge, images, self.config.judge, "cpu").argmax(1) == np.asarray(labels)


def exported(folder: RunFolder) -> Path:
    """`dcdm export`, which does nothing when it is up to date."""
    command = [sys.executable, "-m", "dcdm_cli", "export", "--run", str(folder.path), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder.export


def recorded_seconds(folder: RunFolder, stage: str) -> float:
    """What the stage's record says it took; 0 for one that was not run."""
    record = folder.record(stage)
    return record.seconds if record else 0.0
