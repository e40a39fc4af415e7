"""What a scorer finds in the images of a manifest, without looking again at those it has looked at. Not from the paper.

A scorer that stands on frozen features asks for those that are kept of an image, whoever looked at it first; one with
networks of its own looks at every image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.feature_cache import FeatureCache
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.run.progress import Job, Progress

CHUNK = 1024  # images whose class probabilities are held at once: of thousands of classes they are the larger part


@dataclass(frozen=True)
class Answers:
    """difficulty: float32 [N] in [0, 1], NaN where the scorer's answer is not finite or the label is -1; predicted:
    int64 [N], -1 where the answer is not finite."""

    difficulty: np.ndarray
    predicted: np.ndarray


def found_in(images: Manifest, scorer: Scorer, looked: FeatureCache, job: Job, saved: str) -> Answers:
    """looked: what is kept of images that were looked at, where the rest is added. saved: what a stop leaves finished.

    Raises what `FeatureCache.of` and `Scorer.measure` raise, InterruptedRunError when asked to stop.
    """
    labels = images.column("label").astype(np.int64)
    found = Answers(np.zeros(len(images), np.float32), np.zeros(len(images), np.int64))
    if scorer.extractor is not None:
        for rows, features in looked.of(scorer.extractor, images, job).parts(CHUNK):
            seen = scorer.measure_features(features, labels[rows])
            found.difficulty[rows], found.predicted[rows] = seen.difficulty, seen.predicted
        return found
    paths, report = images.image_paths(), job.stoppable(saved)
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        seen = scorer.measure(paths[rows], labels[rows], progress=_of_all(report, start, len(images)))
        found.difficulty[rows], found.predicted[rows] = seen.difficulty, seen.predicted
    return found


def _of_all(report: Progress, before: int, total: int) -> Progress:
    return lambda what, done, _: report(what, before + done, total)
