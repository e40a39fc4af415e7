"""Scoring generated images through one trunk with K heads, against K networks one after the other, and what it takes of
generation.

    python benchmarks/bench_scoring.py --run RUN   # a run whose scorer rests on features, such as the tutorial's

One thread. The images are first draws of the run's own generator, with its settings; "through K networks" asks each of
the scorer's models by itself, as scorers of trained networks do. Interleaved rounds, medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleaved, write_result

from dcdm_cli.api.run import Run
from dcdm_cli.difficulty.scorer import Scorer

IMAGES, ROUNDS = 64, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(asked.run, quiet=True)
    scorer = Scorer.load(run.folder.scorer)
    images, labels = drawn(run)
    alone = [replace(scorer, models=(model,)) for model in scorer.models]
    works: dict[str, Callable[[], Any]] = {
        "one trunk, K heads": lambda: scorer.measure(images, labels),
        "K networks": lambda: [one.measure(images, labels) for one in alone],
        "generating and scoring": lambda: drawn(run),
    }
    taken = {name: statistics.median(times) for name, times in interleaved(works, ROUNDS).items()}
    rate = {name: round(len(images) / seconds, 1) for name, seconds in taken.items()}
    share = taken["one trunk, K heads"] / taken["generating and scoring"]
    rows = [[name, f"{rate[name]}", f"{1000 * seconds / len(images):.1f}"] for name, seconds in taken.items()]
    sentences = [
        f"{len(alone)} classifiers of the same images: {rate['one trunk, K heads']} images/s through one trunk, "
        f"{rate['K networks']} through a network each.",
        f"Scoring takes {share:.1%} of the time of generating and scoring first draws (torch, {images.shape[1]} px).",
    ]
    table = {"title": "Scoring generated images", "columns": ["work", "images/s", "ms per image"], "rows": rows}
    found = {"threads": 1, "images": len(images), "models": len(alone), "seconds": taken, "share": round(share, 4)}
    write_result("bench_scoring", {**found, "sentences": sentences, "tables": [table]}, {"share": round(share, 4)})


def drawn(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, H, W, 3] and labels int [N]: first draws, scored as they are made."""
    batches = list(run.sample(count=IMAGES, attempts=1, backend="torch"))
    labels = [row.label for batch in batches for row in batch.rows]
    return np.concatenate([batch.images for batch in batches]), np.array(labels)


if __name__ == "__main__":
    main()
