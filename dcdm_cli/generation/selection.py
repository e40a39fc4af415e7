"""Rejection sampling of difficulty: an image that came out too far from its target is made again from other noise.

Not from the paper. A diffusion model steers difficulty on average; single images scatter around it. With `attempts`
above 1 the scorer looks at every image, and one that misses its target by more than `tolerance` gets a new draw; of all
its draws the closest is kept. An image counts as further away when its difficulty is the pull of one other class rather
than the lack of its own: it may well show that class. The cost is the extra draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.seeds import image_seed
from dcdm_cli.generation.shards import Measure
from dcdm_cli.job import Job, silent

RIVAL_SHARE = 0.5  # of the difficulty, which is the probability of all other classes: one may have so much unpunished


def render_close(
    engine: Engine, rows: Sequence[PlanRow], job: Job, measure: Measure | None
) -> Iterator[tuple[Sequence[PlanRow], np.ndarray]]:
    """`render`, with up to `attempts` draws per image. An image still depends on its row alone.

    measure: without one, every first draw is kept.
    """
    attempts = engine.config.attempts
    for batch, images in render(engine, rows, job):
        if measure is not None and attempts > 1:
            images = _best_of(engine, batch, images, measure, job)
        yield batch, images


def _best_of(engine: Engine, rows: Sequence[PlanRow], images: np.ndarray, measure: Measure, job: Job) -> np.ndarray:
    """images uint8 [B, H, W, 3], the first draw of each row -> the best draws."""
    best = images.copy()
    miss = _distance(rows, images, measure)
    quiet = Job(job.device, silent, job.stop_signal)
    for attempt in range(1, engine.config.attempts):
        again = np.flatnonzero(miss > engine.config.tolerance)
        if not len(again):
            break
        drawn = [replace(rows[i], seed=image_seed(rows[i].seed, attempt)) for i in again.tolist()]
        made = np.concatenate([batch for _, batch in render(engine, drawn, quiet)])
        distance = _distance(drawn, made, measure)
        better = distance < miss[again]
        best[again[better]], miss[again[better]] = made[better], distance[better]
    return best


def _distance(rows: Sequence[PlanRow], images: np.ndarray, measure: Measure) -> np.ndarray:
    """float [B]: how far each image is from what its row wants; a score that is not finite counts as far."""
    labels = np.array([row.label for row in rows])
    difficulty, _, rival = measure(images, labels)
    target = np.array([row.target_difficulty for row in rows])
    distance = np.abs(difficulty - target) + np.maximum(0, rival - RIVAL_SHARE * difficulty)
    return np.nan_to_num(distance, nan=1.0)
