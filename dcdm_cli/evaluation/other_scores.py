"""What could stand for difficulty instead of the paper's score: for ablations and controls.

In: a scored manifest. Out: one value in [0, 1] per row, 0 easy, NaN where the row has no score.
"""

from __future__ import annotations

import numpy as np

from dcdm_cli.config import ScoreConfig
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
from dcdm_cli.difficulty.scores import score_columns
from dcdm_cli.errors import UsageError
from dcdm_cli.job import Job

TOP = 0.99  # quantile of the loss that counts as difficulty 1: a loss has no upper end


def other_difficulty(manifest: Manifest, kind: str, seed: int) -> np.ndarray:
    """kind: crossfit (as it is), margin, loss, entropy, or shuffled: dealt out at random within each class.

    float32 [rows]. Raises UsageError when the manifest has no such scores, as with scores from a column.
    """
    difficulty = manifest.column("difficulty")
    if kind == "crossfit":
        return difficulty
    if kind == "shuffled":
        return _shuffled(difficulty, manifest.column("label"), seed)
    values = manifest.column(kind).astype(np.float64)
    known = np.isfinite(values)
    if not known.any():
        raise UsageError(f"this run's scores have no {kind}", "score with a classifier: dcdm score --method crossfit")
    if kind == "margin":  # 1 easy, -1 hard
        scaled = (1 - values) / 2
    elif kind == "entropy":
        scaled = values / np.log(len(manifest.class_names))
    else:
        scaled = values / max(float(np.quantile(values[known], TOP)), 1e-9)
    return np.clip(scaled, 0, 1).astype(np.float32)


def in_sample(manifest: Manifest, config: ScoreConfig, job: Job) -> np.ndarray:
    """float32 [rows]: the paper's score by a classifier that learnt from the very images it scores; NaN off train."""
    train = manifest.split("train")
    labels = train.column("label").astype(np.int64)
    model = train_classifier(
        train.paths(), labels, len(manifest.class_names), config, config.seed, job.device, job.progress
    )
    scores = score_columns(predict_logits(model, train.paths(), config, job.device), labels)["difficulty"]
    values = np.full(len(manifest), np.nan, np.float32)
    values[manifest.column("split") == "train"] = scores
    return values


def _shuffled(difficulty: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, 17))
    mixed = difficulty.copy()
    for label in np.unique(labels):
        mine = np.flatnonzero((labels == label) & np.isfinite(difficulty))
        mixed[mine] = difficulty[rng.permutation(mine)]
    return mixed
