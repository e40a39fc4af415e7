"""Which way of scoring suits these images: the cheap one first, others where a budget of seconds allows. Not from the
paper.

Each method is judged by what it gets right out of fold. A slower one has to be better than chance would make it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from dcdm_cli import pace
from dcdm_cli.arrays import evenly
from dcdm_cli.difficulty.classifier import Images, train_classifier
from dcdm_cli.difficulty.scores import calibration_error
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig

TIMED_STEPS = 4
FEW = 8  # images of a first, rough look
HOPELESS = 4.0  # times the budget: what a rough look finds so far off needs no closer one
Found = TypeVar("Found")


@dataclass(frozen=True)
class Method(Generic[Found]):
    """A way of scoring. estimate: seconds it would take, None = it is always tried. score: does it, and gives score
    columns beside the result."""

    name: str
    score: Callable[[], tuple[Mapping[str, np.ndarray], Found]]
    estimate: Callable[[], float] | None = None


@dataclass(frozen=True)
class MethodChoice(Generic[Found]):
    """kept: the candidate's name. table: a row per candidate (method, accuracy and calibration_error out of fold,
    seconds; None for what was not tried, with `estimate`). why: one sentence."""

    kept: str
    result: Found
    table: list[dict[str, Any]]
    why: str


def best_of(candidates: Sequence[Method[Found]], labels: np.ndarray, budget: float, job: Job) -> MethodChoice[Found]:
    """The first candidate is always tried, the others while their estimate fits in what is left of `budget` seconds.

    labels: int [N], -1 = unknown. A later one is kept when it gets more images right than the best before it by more
    than the standard error of that difference.
    """
    table: list[dict[str, Any]] = []
    kept, kept_right, result, left = "", np.zeros(0, bool), None, budget
    for candidate in candidates:
        expected = candidate.estimate() if candidate.estimate else 0.0
        row = {"method": candidate.name, "accuracy": None, "calibration_error": None, "seconds": None}
        table.append(row | {"estimate": round(expected, 1) if candidate.estimate else None})
        if expected > left:
            job.note(
                f"{candidate.name}: not tried, about {pace.estimated(expected)}; {left:.0f} s of the budget are left"
            )
            continue
        started = time.monotonic()
        columns, scored = candidate.score()
        seconds = time.monotonic() - started
        left -= seconds if candidate.estimate else 0.0  # the budget is for what need not be tried
        # an image of a class that its fold never saw has a prediction and no difficulty: no answer is not right
        right = (columns["predicted"] == labels) & np.isfinite(columns["difficulty"])
        table[-1] |= _figures(columns, labels, right, seconds)
        if not kept or clearly_better(right, kept_right):
            kept, kept_right, result = candidate.name, right, scored
    assert result is not None
    return MethodChoice(kept, result, table, _why(kept, table))


def clearly_better(right: np.ndarray, than: np.ndarray) -> bool:
    """right, than: bool [N], which images two methods get right. By more than one standard error of the difference,
    which only images that just one of them gets right contribute to."""
    won, lost = int((right & ~than).sum()), int((than & ~right).sum())
    return won - lost > np.sqrt(won + lost)


def training_seconds(
    images: Images, labels: np.ndarray, classes: int, config: ClassifierConfig, models: int, budget: float, job: Job
) -> float:
    """What training `models` classifiers would take on this device, from a few steps that are thrown away."""
    total, batch = config.steps * models, min(config.batch_size, len(images))

    def step_seconds(count: int, steps: int) -> float:
        """Of steps on `count` images, after a first one, which also decodes and warms up."""
        rows, times = evenly(len(images), count), []
        short = config.model_copy(update={"steps": 1 + steps})
        clock = lambda what, done, of: times.append(time.monotonic())  # noqa: E731
        chosen = [images[int(row)] for row in rows]
        # without checkpoints: what is thrown away must not be gone on from
        train_classifier(chosen, labels[rows], classes, short, 0, torch.device(job.device), clock)
        return (times[-1] - times[0]) / steps

    # on a slow device a few whole batches alone could take longer than the budget
    if batch > FEW:
        roughly = step_seconds(FEW, 1) * batch / FEW * total
        if roughly > HOPELESS * budget:
            return roughly
    return step_seconds(batch, TIMED_STEPS) * total


def _figures(
    columns: Mapping[str, np.ndarray], labels: np.ndarray, right: np.ndarray, seconds: float
) -> dict[str, Any]:
    scored = np.isfinite(columns["difficulty"])
    return {
        "accuracy": round(float(right[scored].mean()), 4) if scored.any() else None,
        "calibration_error": round(calibration_error(columns, labels), 4) if scored.any() else None,
        "seconds": round(seconds, 1),
    }


def _why(kept: str, table: Sequence[Mapping[str, Any]]) -> str:
    tried = {row["method"]: row for row in table if row["seconds"] is not None}
    others = [
        f"{name} {row['accuracy']:.3f}" for name, row in tried.items() if name != kept and row["accuracy"] is not None
    ]
    skipped = [
        f"{row['method']} would take about {pace.estimated(row['estimate'])}" for row in table if row["seconds"] is None
    ]
    accuracy = tried[kept]["accuracy"]
    said = f"{kept}: {'no' if accuracy is None else f'{accuracy:.3f}'} of the images named right out of fold"
    if others:
        said += f", against {' and '.join(others)}"
    return said + (f"; not tried: {', '.join(skipped)}" if skipped else "")
