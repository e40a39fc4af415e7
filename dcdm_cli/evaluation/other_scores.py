"""What could stand for difficulty instead of the paper's score: for ablations and controls.

All give one value in [0, 1] per view of a training image, 0 easy. Views of N images come as all originals, then the
next view of all, and so on, so that a view's image is its position modulo N.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.difficulty.scores import score_columns
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig

TOP = 0.99  # quantile of the loss that counts as difficulty 1: a loss has no upper end


def rescaled(probs: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    """margin, loss or entropy of predictions, float32 [N] in [0, 1]. probs: float [N, C]; labels: int [N]."""
    with np.errstate(divide="ignore"):
        # a probability rounded to 0 would have an infinite logarithm, and no score
        values = score_columns(np.log(np.maximum(probs, 1e-30)), labels)[kind].astype(np.float64)
    if kind == "margin":  # 1 easy, -1 hard
        scaled = (1 - values) / 2
    elif kind == "entropy":
        scaled = values / np.log(probs.shape[1])
    else:
        scaled = values / max(float(np.quantile(values, TOP)), 1e-9)  # of a classifier without any loss all are easy
    return np.clip(scaled, 0, 1).astype(np.float32)


def shuffled(difficulty: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Difficulties dealt out at random among the images of each class; the views of an image get those of one other.

    difficulty: float [views * N]; labels: int [N]. The same shape comes back.
    """
    rng, order = np.random.default_rng((seed, 17)), np.arange(len(labels))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        order[mine] = rng.permutation(mine)
    return difficulty.reshape(-1, len(labels))[:, order].ravel()


def in_sample(
    real: tuple[Sequence[Path], np.ndarray], classes: int, views: Sequence[Image.Image], config: ScoreConfig, job: Job
) -> np.ndarray:
    """float32 [views]: the paper's score by a classifier that learnt from the very images it scores.

    real: the files and labels int [N] of the training images.
    """
    paths, labels = real
    model = train_classifier(list(paths), labels, classes, config, config.seed, job.device, job.progress, Keep(job))
    logits = predict_logits(model, views, config, job.device)
    return score_columns(logits, np.tile(labels, len(views) // len(labels)))["difficulty"]
