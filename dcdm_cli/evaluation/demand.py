"""What the newest classifier finds hard, per class and difficulty, and a budget spread accordingly. Not from the paper.

The newest classifier learns from the real and the generated images. It is cross-fitted, because images it has learnt
from are easy for it; and it is asked about real training images only, because test images are not ours to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.difficulty.crossfit import fold_of
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.difficulty.scores import score_all
from dcdm_cli.evaluation.downstream import Samples
from dcdm_cli.evaluation.learners import Learner
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig

BINS = 10
PRIOR = 0.02  # difficulty's worth of images that every cell below the cap gets: what is learnt can be forgotten


@dataclass(frozen=True)
class Demand:
    """weights: float64 [classes, BINS], what each cell of class and difficulty is asked for, up to the cap; sum 1.
    difficulty: how hard the newest classifier finds real images on average, None = not known. cap: nothing harder is
    asked for."""

    weights: np.ndarray
    difficulty: float | None
    cap: float

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [count] and target difficulties float32 [count]: cells by weight, even inside a cell."""
        cells = rng.choice(self.weights.size, count, p=self.weights.ravel())
        labels, bins = np.divmod(cells, BINS)
        # the cap may lie inside a bin
        low, high = bins / BINS, np.minimum((bins + 1) / BINS, self.cap)
        return labels.astype(np.int64), (low + rng.random(count) * (high - low)).astype(np.float32)

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Expected images per class, in easy, medium and hard thirds of the reachable range."""
        shares = np.stack([part.sum(1) for part in np.array_split(self.weights[:, : self._bins()], 3, axis=1)], axis=1)
        names = ("easy", "medium", "hard")
        return [
            {"label": label, **{k: round(float(v) * count, 1) for k, v in zip(names, row, strict=True)}}
            for label, row in enumerate(shares)
        ]

    def _bins(self) -> int:
        return max(3, int(np.ceil(self.cap * BINS)))  # three: `rows` tells thirds


def newest_difficulty(
    real: Samples,
    extra: Samples,
    classes: int,
    config: ClassifierConfig,
    folds: int,
    seed: int,
    job: Job,
    cache: Path | None = None,
) -> np.ndarray:
    """float32 [real images]: 1 - p(true class) by classifiers that learnt from the other folds and all of `extra`.
    cache: folder of features that are known already."""
    fold = fold_of([str(path) for path in real.paths], real.labels, folds, seed)
    logits = np.zeros((len(real), classes), np.float32)
    count = int(fold.max()) + 1
    for number in range(count):
        train, asked = _rows(real, fold != number) + extra, _rows(real, fold == number)
        learner = Learner(config, classes, seed + number, job.device, cache, Keep(job))
        logits[fold == number] = learner.answers(train.paths, train.labels, asked.paths)
        job.progress("what is hard now", number + 1, count)
    return score_all(logits, real.labels, calibrate=True).columns["difficulty"]


def demand(newest: np.ndarray, difficulty: np.ndarray, labels: np.ndarray, classes: int, cap: float) -> Demand:
    """newest: how hard the newest classifier finds each real image; difficulty: how hard the scorer does, which is what
    a generator can be asked for. float [N] each, NaN = not scored; labels int [N]. A cell's weight is the sum of
    `newest` over its images. Images harder than the cap count for nothing: beyond it labels break."""
    usable = np.isfinite(newest) & np.isfinite(difficulty) & (difficulty <= cap)
    bins = np.minimum((difficulty[usable] * BINS).astype(int), BINS - 1)  # a difficulty of 1 is of the last bin
    weights = np.zeros((classes, BINS))
    weights[:, np.arange(BINS) / BINS < cap] = PRIOR
    # not `+=`, which would count a cell once, however many images are in it
    np.add.at(weights, (labels[usable], bins), newest[usable])
    known = newest[np.isfinite(newest)]
    return Demand(weights / weights.sum(), round(float(known.mean()), 4) if len(known) else None, cap)


def _rows(samples: Samples, keep: np.ndarray) -> Samples:
    return Samples([path for path, kept in zip(samples.paths, keep, strict=True) if kept], samples.labels[keep])
