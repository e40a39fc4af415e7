"""How much of difficulty can be read from what an image looks like coarsely: whether a small generator can steer it.

    python benchmarks/looks.py --run RUN --name digits [--images 1500]

A generator steers what its conditioning can tell in noisy latents, and a small one knows colours, strokes and layout.
The images are first draws of the run's own generator. Their difficulty, less the mean of their class, is predicted from
8 x 8 pixels by two regressions that are strong on few data, out of fold; rank correlations between prediction and
difficulty are reported. Writes results/looks_<name>.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from dcdm_cli.api.run import Run

SIDE, FOLDS = 8, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--images", type=int, default=1500)
    asked = parser.parse_args()
    run = Run(asked.run, quiet=True)
    batches = list(run.sample(count=asked.images, attempts=1, difficulty="uniform:0.1,0.9"))
    labels = np.array([row.label for batch in batches for row in batch.rows])
    difficulty = np.concatenate([np.asarray(batch.verdict.difficulty) for batch in batches if batch.verdict])
    pixels = coarse(np.concatenate([batch.images for batch in batches]))
    found = {
        "ridge regression": readable(RidgeCV(np.logspace(-1, 4, 12)), pixels, labels, difficulty),
        "boosted trees": readable(HistGradientBoostingRegressor(random_state=0), pixels, labels, difficulty),
    }
    sentence = (
        f"Of {len(labels):,} first draws ({asked.name}), {SIDE} x {SIDE} pixels foretell difficulty within a class "
        f"with a rank correlation of {max(found.values()):.2f}."
    )
    table = {"title": "Foretold by", "columns": ["by", "rank correlation"], "rows": [*map(list, found.items())]}
    result = {"images": len(labels), **found, "sentences": [sentence], "tables": [table]}
    write_result(f"looks_{asked.name}", result, found)


def coarse(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 [N, SIDE * SIDE * 3], means of equal blocks."""
    n, height, width, _ = images.shape
    blocks = images.reshape(n, SIDE, height // SIDE, SIDE, width // SIDE, 3)
    return blocks.mean((2, 4), dtype=np.float32).reshape(n, -1) / 255


def readable(model: BaseEstimator, pixels: np.ndarray, labels: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of difficulty with what `model` foretells of it, out of fold, without the means of classes."""
    means = np.array(
        [y[labels == label].mean() if (labels == label).any() else 0.0 for label in range(labels.max() + 1)]
    )
    inputs = np.hstack([pixels, np.eye(len(means), dtype=np.float32)[labels]])
    foretold = cross_val_predict(model, inputs, y - means[labels], cv=KFold(FOLDS, shuffle=True, random_state=0))
    return correlation(foretold, y - means[labels])


def correlation(a: Any, b: Any) -> float:
    """Spearman's, of two sequences of numbers."""
    found: Any = spearmanr(a, b)
    return round(float(found.statistic), 3)


if __name__ == "__main__":
    main()
