"""What images are worth to a classifier: arms trained from scratch, paired by seed, tested on untouched images.

Every arm gets the same optimiser steps, so that more images do not mean more training. Intervals are Student's t over
the seeds; differences are paired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dcdm_cli.config import ClassifierConfig
from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
from dcdm_cli.files import hash_json, storage_errors
from dcdm_cli.job import Job

REAL = "real"


@dataclass(frozen=True)
class Samples:
    """Image files with their labels, int64 [N]."""

    paths: Sequence[Path]
    labels: np.ndarray

    def __add__(self, other: Samples) -> Samples:
        return Samples([*self.paths, *other.paths], np.concatenate([self.labels, other.labels]))

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Arm:
    """extra(seed): the images added to the real ones for that seed; key: what they are made from, for the ledger."""

    name: str
    extra: Callable[[int], Samples]
    key: str


class Ledger:
    """Finished (arm, seed) accuracies, one JSON line each: never lost, never computed twice."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        self._known = {row["key"]: row for row in map(_parse, lines) if row}

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        self._known[key] = {"key": key, **row}
        with storage_errors(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(self._known[key]) + "\n")


def run_arms(
    arms: Sequence[Arm], real: Samples, test: Samples, config: ClassifierConfig, seeds: Sequence[int], *,
    classes: int, ledger: Ledger, job: Job,
) -> dict[str, Any]:  # fmt: skip
    """Trains one classifier per arm and seed; returns the `downstream` part of metrics.json."""
    accuracy: dict[str, list[float]] = {arm.name: [] for arm in arms}
    extra_images = dict.fromkeys(accuracy, 0)
    done, total = 0, len(arms) * len(seeds)
    for seed in seeds:
        for arm in arms:
            key = hash_json([arm.name, arm.key, seed, config.model_dump(mode="json"), len(real), len(test)])
            row = ledger.get(key)
            if row is None:
                extra = arm.extra(seed)
                value = arm_accuracy(real + extra, test, config, classes, seed, job.device)
                row = {"arm": arm.name, "seed": seed, "accuracy": value, "images": len(extra)}
                ledger.add(key, row)
            accuracy[arm.name].append(row["accuracy"])
            extra_images[arm.name] = row["images"]
            done += 1
            job.progress("downstream classifiers", done, total)
            job.stop_if_asked(f"{done} of {total} classifiers are finished")
    return {
        "classifier": config.model,
        "steps": config.steps,
        "test_images": len(test),
        "real_images": len(real),
        "seeds": len(seeds),
        "arms": [_summary(name, extra_images[name], values) for name, values in accuracy.items()],
        "paired": _paired(accuracy),
    }


def arm_accuracy(
    train: Samples, test: Samples, config: ClassifierConfig, classes: int, seed: int, device: str
) -> float:
    """Top-1 accuracy on `test` of a classifier trained from scratch on `train`."""
    model = train_classifier(list(train.paths), train.labels, classes, config, seed, device)
    logits = predict_logits(model, list(test.paths), config, device)
    return round(float((logits.argmax(1) == test.labels).mean()), 6)


def _summary(name: str, images: int, accuracy: Sequence[float]) -> dict[str, Any]:
    return {
        "name": name,
        "synthetic_images": images,
        "accuracy": list(accuracy),
        "accuracy_mean": round(float(np.mean(accuracy)), 6),
        "accuracy_ci95": _interval(np.asarray(accuracy)),
    }


def _paired(accuracy: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Every arm against real, and dcdm against every other arm."""
    pairs = [(arm, REAL) for arm in accuracy if arm != REAL and REAL in accuracy]
    if "dcdm" in accuracy:
        pairs += [("dcdm", arm) for arm in accuracy if arm not in ("dcdm", REAL)]
    rows = []
    for arm, against in pairs:
        difference = np.subtract(accuracy[arm], accuracy[against])
        row = {"arm": arm, "against": against, "difference_mean": round(float(difference.mean()), 6)}
        rows.append({**row, "difference_ci95": _interval(difference), "seeds": len(difference)})
    return rows


def _interval(values: np.ndarray) -> list[float] | None:
    """95 % Student's t interval of the mean; None for a single seed, the point itself without any spread."""
    if len(values) < 2:
        return None
    error = stats.sem(values)
    if error == 0:
        return [round(float(values[0]), 6)] * 2
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return [round(float(low), 6), round(float(high), 6)]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # a line torn by a crash: that classifier is trained again
        return None
