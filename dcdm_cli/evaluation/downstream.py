"""What images are worth to a classifier: arms trained from scratch, paired by seed, tested on untouched images.

Every arm gets the same optimiser steps, so that more images do not mean more training. Intervals and verdicts are those
of statistics.py; differences are paired.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
from dcdm_cli.evaluation.statistics import interval, paired
from dcdm_cli.files import hash_json, storage_errors
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint
from dcdm_cli.run.settings import ClassifierConfig, changed

REAL, OURS = "real", "dcdm"


@dataclass(frozen=True)
class Samples:
    """Image files with their labels, int64 [N]."""

    paths: Sequence[Path]
    labels: np.ndarray

    def __add__(self, other: Samples) -> Samples:
        return Samples([*self.paths, *other.paths], np.concatenate([self.labels, other.labels]))

    def __len__(self) -> int:
        return len(self.paths)


NOTHING = Samples([], np.zeros(0, np.int64))


@dataclass(frozen=True)
class Arm:
    """extra(seed): the images added to the real ones for that seed; key: what they are made from, whatever the arm is
    called. classifier: settings of this arm alone (stronger augmentation)."""

    name: str
    extra: Callable[[int], Samples]
    key: str
    classifier: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Trial:
    """What all arms share. content: hash of the real and the test images, which the ledger's keys depend on. baseline:
    the arm that all are compared with; focus: the one that is also compared with every other."""

    real: Samples
    test: Samples
    classes: int
    content: str
    baseline: str = REAL
    focus: str = OURS


class Ledger:
    """Finished (arm, seed) accuracies, one JSON line each: never lost, never computed twice."""

    def __init__(self, file: Path) -> None:
        self.file = file
        content = file.read_text("utf-8") if file.is_file() else ""
        self._known = {row["key"]: row for row in map(_parse, content.splitlines()) if row}
        self._start = (
            "" if content.endswith("\n") or not content else "\n"
        )  # a torn last line must not swallow the next

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """One write, so that several processes can share the file."""
        self._known[key] = {"key": key, **row}
        with storage_errors(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{self._start}{json.dumps(self._known[key])}\n")
        self._start = ""


def open_ledger(folder: Path) -> Ledger:
    """The one ledger of an evaluation folder, which all experiments of the run share."""
    folder.mkdir(parents=True, exist_ok=True)
    return Ledger(folder / "downstream.jsonl")


def trial_of(real: Manifest, test: Manifest, baseline: str = REAL, focus: str = OURS) -> Trial:
    train, held_out = (Samples(part.paths(), part.column("label").astype(np.int64)) for part in (real, test))
    content = hash_json([[part.column("sample_id").tolist(), part.column("label").tolist()] for part in (real, test)])
    return Trial(train, held_out, len(real.class_names), content, baseline, focus)


def seeds_of(first: int, count: int) -> list[int]:
    return [first + i for i in range(count)]


def arm_key(arm: Arm, trial: Trial, config: ClassifierConfig, seed: int) -> str:
    """Equal for arms that are the same in all but name: those are computed once, by whichever experiment is first."""
    return hash_json([arm.key, seed, fingerprint(_settings(arm, config)), trial.content])


def run_arms(
    arms: Sequence[Arm],
    trial: Trial,
    config: ClassifierConfig,
    seeds: Sequence[int],
    *,
    ledger: Ledger,
    job: Job,
    workers: int = 1,
) -> dict[str, Any]:
    """Trains one classifier per arm and seed that the ledger lacks, `workers` of them at a time in processes of their
    own; returns the `downstream` part of metrics.json."""
    _train_missing(_Lesson.all(arms, trial, config, seeds, ledger), trial, len(arms) * len(seeds), ledger, job, workers)
    rows = {arm.name: [ledger.get(arm_key(arm, trial, config, seed)) or {} for seed in seeds] for arm in arms}
    accuracy = {name: [row["accuracy"] for row in finished] for name, finished in rows.items()}
    return {
        "classifier": config.model,
        "steps": config.steps,
        "test_images": len(trial.test),
        "real_images": len(trial.real),
        "seeds": len(seeds),
        "arms": [_summary(name, finished) for name, finished in rows.items()],
        "paired": paired(accuracy, trial.baseline, trial.focus),
    }


def arm_accuracy(
    train: Samples, test: Samples, config: ClassifierConfig, classes: int, seed: int, device: str
) -> float:
    """Top-1 accuracy on `test` of a classifier trained from scratch on `train`."""
    model = train_classifier(list(train.paths), train.labels, classes, config, seed, device)
    logits = predict_logits(model, list(test.paths), config, device)
    return round(float((logits.argmax(1) == test.labels).mean()), 6)


@dataclass(frozen=True)
class _Lesson:
    """One classifier that is still to be trained."""

    key: str
    arm: Arm
    seed: int
    config: ClassifierConfig

    @classmethod
    def all(
        cls, arms: Sequence[Arm], trial: Trial, config: ClassifierConfig, seeds: Sequence[int], ledger: Ledger
    ) -> list[_Lesson]:
        """Seed by seed, so that a stopped comparison has whole pairs; each only once."""
        wanted = [(arm_key(arm, trial, config, seed), arm, seed) for seed in seeds for arm in arms]
        missing = {key: cls(key, arm, seed, _settings(arm, config)) for key, arm, seed in wanted if not ledger.get(key)}
        return list(missing.values())


def _train_missing(
    lessons: Sequence[_Lesson], trial: Trial, total: int, ledger: Ledger, job: Job, workers: int
) -> None:
    done = total - len(lessons)
    for lesson, value, seconds, images in _taught(lessons, trial, job, workers):
        row = {"arm": lesson.arm.name, "seed": lesson.seed, "accuracy": value, "images": images, "seconds": seconds}
        ledger.add(lesson.key, row)
        done += 1
        job.progress("downstream classifiers", done, total)
        job.stop_if_asked(f"{done} of {total} classifiers are finished")


Taught = tuple[_Lesson, float, float, int]  # accuracy, seconds, extra images


def _taught(lessons: Sequence[_Lesson], trial: Trial, job: Job, workers: int) -> Iterator[Taught]:
    """Lessons as they are finished."""
    if workers == 1 or len(lessons) < 2:
        for lesson in lessons:
            extra = lesson.arm.extra(lesson.seed)
            yield (lesson, *_lesson(trial, extra, lesson.config, lesson.seed, job.device), len(extra))
        return
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU its parent has used
    with ProcessPoolExecutor(workers, spawn, initializer=_quiet, initargs=(_threads() // workers,)) as pool:
        waiting: dict[Future[tuple[float, float]], tuple[_Lesson, int]] = {}
        for lesson in lessons:
            extra = lesson.arm.extra(lesson.seed)
            future = pool.submit(_lesson, trial, extra, lesson.config, lesson.seed, job.device)
            waiting[future] = lesson, len(extra)
        try:
            for future in as_completed(waiting):
                lesson, images = waiting[future]
                yield (lesson, *future.result(), images)
        finally:
            pool.shutdown(cancel_futures=True)


def _lesson(trial: Trial, extra: Samples, config: ClassifierConfig, seed: int, device: str) -> tuple[float, float]:
    clock = time.monotonic()
    accuracy = arm_accuracy(trial.real + extra, trial.test, config, trial.classes, seed, device)
    return accuracy, round(time.monotonic() - clock, 2)


def _threads() -> int:
    return torch.get_num_threads()


def _quiet(threads: int) -> None:
    """In a worker: its share of the threads, and Ctrl-C is for the parent to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, threads))


def _settings(arm: Arm, config: ClassifierConfig) -> ClassifierConfig:
    return changed(config, arm.classifier or {}, f"arm {arm.name}")


def _summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracy = [row["accuracy"] for row in rows]
    return {
        "name": name,
        "synthetic_images": rows[-1]["images"],
        "accuracy": accuracy,
        "accuracy_mean": round(float(np.mean(accuracy)), 6),
        "accuracy_ci95": interval(accuracy),
    }


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # a line torn by a crash: that classifier is trained again
        return None
