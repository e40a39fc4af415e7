"""Plan rows to images, with rejection sampling of difficulty: what came out too far from its target is made again.

Not from the paper. A diffusion model steers difficulty on average; single images scatter around it. With `attempts`
above 1 the scorer looks at every image, and one that misses its target by more than `tolerance` gets a new draw; of all
its draws the closest is kept. An image counts as further away when its difficulty is the pull of one other class rather
than the lack of its own: it may well show that class. With a label check, a second classifier looks too, and an image
in which it does not see the label is further away than any in which it does. The cost is the extra draws.

All draws come from one pool, redraws first, filled up with new rows: every batch but the last few of a shard is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dcdm_cli.difficulty.verdict import Measure, Verdict, joined
from dcdm_cli.generation.engine import LOOK_AHEAD, Engine, draw, render
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.seeds import image_seed
from dcdm_cli.generation.shards import Facts, Rendered
from dcdm_cli.generation.starts import Starts
from dcdm_cli.run.progress import Job

LOST = 4.0  # distance that a label which is not seen adds: more than difficulty and rival can
RIVAL_SHARE = 0.5  # of the difficulty, which is the probability of all other classes: one may have so much unpunished


def render_close(engine: Engine, rows: Sequence[PlanRow], job: Job, measure: Measure | None) -> Iterator[Rendered]:
    """Images with up to `attempts` draws each, measured, in the order of the rows. An image depends on its row alone.

    measure: without one, every first draw is kept.
    """
    if measure is None:
        for batch, images in render(engine, rows, job):
            yield Rendered(batch, images, None)
        return
    pool = Pool(rows, engine.config.attempts, engine.config.tolerance)
    while pool.given < len(rows):
        draws = pool.next_draws(engine.batch_size, LOOK_AHEAD * engine.config.batch_size, engine.denoiser.fixed_batch)
        drawn = [seeded(rows[place], attempt) for place, attempt in draws]
        images = draw(engine, drawn, job)
        # the first of what was due, as many as are made at once; the others stay due
        pool.take(draws[: len(images)], images, _measured(drawn[: len(images)], images, measure))
        finished = pool.finished()
        if finished is not None:
            yield finished
            job.progress("generating", pool.given, len(rows))


@dataclass
class _Kept:
    """The best draw of a row so far. draws: how many have been looked at. settled: no other one is wanted."""

    draws: int = 0
    settled: bool = False
    distance: float = np.inf
    image: np.ndarray | None = None
    verdict: Verdict | None = None  # on this image alone


class Pool:
    """Which draws are due, and what came of them. given: rows that were handed over, always the first ones.

    A row waits for those before it. Redraws go first, so it waits for `attempts` batches at most.
    """

    def __init__(self, rows: Sequence[PlanRow], attempts: int, tolerance: float) -> None:
        self._rows, self._attempts, self._tolerance = rows, attempts, tolerance
        self._open: dict[int, _Kept] = {}  # by place among the rows, in their order
        self._begun = self.given = 0

    def next_draws(self, batch: int, ahead: int, always_full: bool) -> list[tuple[int, int]]:
        """(place, attempt) of the next `batch` draws, and of new rows up to `ahead`, which are known to come.

        always_full: where a batch costs the same however few its rows, later attempts of the same rows fill it up;
        they count only if those before them miss.
        """
        waiting = [(place, kept.draws) for place, kept in self._open.items() if not kept.settled]
        fresh = range(self._begun, min(len(self._rows), self._begun + max(0, ahead - len(waiting))))
        draws = [*waiting, *((place, 0) for place in fresh)]
        attempt = 1
        while always_full and len(draws) < batch and attempt < self._attempts:
            more = [(place, first + attempt) for place, first in (*waiting, *((place, 0) for place in fresh))]
            draws += [(place, later) for place, later in more if later < self._attempts]
            attempt += 1
        return draws

    def take(self, draws: Sequence[tuple[int, int]], images: np.ndarray, verdict: Verdict) -> None:
        """What was made of the first of the draws that were due."""
        distances = distance_of(np.array([self._rows[place].target_difficulty for place, _ in draws]), verdict)
        for i, (place, attempt) in enumerate(draws):
            kept = self._open.setdefault(place, _Kept())
            self._begun = max(self._begun, place + 1)
            # drawn early to fill a batch up: it counts in its turn, so that batches do not decide which draw is kept
            if kept.settled or attempt != kept.draws:
                continue
            kept.draws += 1
            if kept.image is None or distances[i] < kept.distance:
                # a copy: a view would keep the whole batch in memory
                kept.distance, kept.image, kept.verdict = float(distances[i]), images[i].copy(), verdict.only(i)
            kept.settled = kept.draws >= self._attempts or not kept.distance > self._tolerance

    def finished(self) -> Rendered | None:
        """Rows that are settled and wait for none before them, with the best of their draws."""
        places = []
        while (kept := self._open.get(self.given + len(places))) is not None and kept.settled:
            places.append(self.given + len(places))
        if not places:
            return None
        kept_draws = [self._open.pop(place) for place in places]
        self.given += len(places)
        images = np.stack([kept.image for kept in kept_draws if kept.image is not None])
        verdict = joined([kept.verdict for kept in kept_draws if kept.verdict is not None])
        return Rendered([self._rows[place] for place in places], images, verdict)


def seeded(row: PlanRow, attempt: int) -> PlanRow:
    """The row as its draw `attempt` is made; 0 is the first."""
    return replace(row, seed=image_seed(row.seed, attempt)) if attempt else row


def _measured(rows: Sequence[PlanRow], images: np.ndarray, measure: Measure) -> Verdict:
    return measure(images, np.array([row.label for row in rows]))


def distance_of(target: np.ndarray, verdict: Verdict) -> np.ndarray:
    """float [B]: how far each image is from what its row wants, target float [B]; a score that is not finite counts as
    far, a lost label as further than any other miss."""
    distance = np.zeros(len(target))
    if verdict.rival is not None:
        misses = np.abs(verdict.difficulty - target)
        distance = np.nan_to_num(misses + np.maximum(0, verdict.rival - RIVAL_SHARE * verdict.difficulty), nan=1.0)
    return distance if verdict.shows is None else distance + LOST * ~verdict.shows


class EngineMaker:
    """An engine and a scorer as a `Maker`."""

    def __init__(self, engine: Engine, measure: Measure | None = None) -> None:
        info = engine.info
        self.engine, self._measure, self.batch_size = engine, measure, engine.config.batch_size
        kernels = getattr(engine.denoiser, "kernels", {})
        self.facts = Facts(engine.generator, tuple(info.class_names), info.base, engine.denoiser.name, kernels)

    def render(self, rows: Sequence[PlanRow], job: Job) -> Iterator[Rendered]:
        return render_close(self.engine, rows, job, self._measure)

    def begin_from(self, starts: Starts) -> None:
        self.engine = replace(self.engine, starts=starts)
