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

from dcdm_cli.difficulty.verdict import Verdict
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.seeds import image_seed
from dcdm_cli.generation.shards import Measure, Rendered
from dcdm_cli.run.progress import Job, silent

RIVAL_SHARE = 0.5  # of the difficulty, which is the probability of all other classes: one may have so much unpunished


def render_close(engine: Engine, rows: Sequence[PlanRow], job: Job, measure: Measure | None) -> Iterator[Rendered]:
    """`render` with up to `attempts` draws per image, measured. An image still depends on its row alone.

    measure: without one, every first draw is kept.
    """
    for batch, images in render(engine, rows, job):
        if measure is None:
            yield Rendered(batch, images, None)
        else:
            yield _best_of(engine, Rendered(batch, images, _measured(batch, images, measure)), measure, job)


def _best_of(engine: Engine, first: Rendered, measure: Measure, job: Job) -> Rendered:
    """first: the first draw of each row. Returns the best draws."""
    assert first.verdict is not None
    rows, images = first.rows, first.images.copy()
    verdict = Verdict(*(np.array(part) for part in first.verdict))
    miss = _distance(rows, verdict)
    quiet = Job(job.device, silent, job.stop_signal)
    for attempt in range(1, engine.config.attempts):
        again = np.flatnonzero(miss > engine.config.tolerance)
        if not len(again):
            break
        drawn = [replace(rows[i], seed=image_seed(rows[i].seed, attempt)) for i in again.tolist()]
        made = np.concatenate([batch for _, batch in render(engine, drawn, quiet)])
        said = _measured(drawn, made, measure)
        distance = _distance(drawn, said)
        better = distance < miss[again]
        for kept, new in zip((images, miss, *verdict), (made, distance, *said), strict=True):
            kept[again[better]] = new[better]
    return Rendered(rows, images, verdict)


def _measured(rows: Sequence[PlanRow], images: np.ndarray, measure: Measure) -> Verdict:
    return measure(images, np.array([row.label for row in rows]))


def _distance(rows: Sequence[PlanRow], verdict: Verdict) -> np.ndarray:
    """float [B]: how far each image is from what its row wants; a score that is not finite counts as far."""
    target = np.array([row.target_difficulty for row in rows])
    misses = np.abs(verdict.difficulty - target)
    distance = misses + np.maximum(0, verdict.rival - RIVAL_SHARE * verdict.difficulty)
    return np.nan_to_num(distance, nan=1.0)
