"""Images that are only looked at: workers render and measure them, and they are handed over in order. None is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dcdm_cli.difficulty.verdict import Verdict, joined
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.run import check_generator
from dcdm_cli.generation.shards import Facts, Maker
from dcdm_cli.generation.starts import Starts
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.messages import Piece

# Plan rows, their images uint8 [B, H, W, 3] and realised difficulties float32 [B].
Watch = Callable[[Sequence[PlanRow], np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class SampleTask:
    """starts: what the rows begin from; None = noise."""

    rows: tuple[PlanRow, ...]
    generator: str
    starts: Starts | None = None


@dataclass(frozen=True)
class Sampled:
    """images uint8 [B, H, W, 3] of a task's rows, and what was said of them."""

    images: np.ndarray
    verdict: Verdict


class SampleWorker:
    """Holds model and scorer. hello: (facts, batch size)."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.hello: tuple[Facts, int] = (maker.facts, maker.batch_size)

    def run(self, task: SampleTask) -> Iterator[Sampled]:
        check_generator(task.generator, self.maker.facts)
        if task.starts is not None:
            self.maker.begin_from(task.starts)
        # a job that is never stopped: a task is one batch, short enough to finish
        batches = list(self.maker.render(task.rows, Job()))
        verdicts = [batch.verdict for batch in batches if batch.verdict is not None]
        assert len(verdicts) == len(batches), "callers check that the run has a scorer"
        yield Sampled(np.concatenate([batch.images for batch in batches]), joined(verdicts))


def sample_rows(
    rows: Sequence[PlanRow], pool: WorkerPool, batch: int, watch: Watch | None = None, starts: Starts | None = None
) -> Verdict:
    """What is said of the images that a worker pool of `SampleWorker`s makes.

    batch: images per task. watch: sees every batch once, in the order of the rows. starts: what images begin from; each
    task takes what it needs. Raises InterruptedRunError.
    """
    parts = [tuple(rows[start : start + batch]) for start in range(0, len(rows), batch)]
    ahead: dict[int, Sampled] = {}  # made before their turn
    verdicts: list[Verdict] = []

    def said(chunk: Piece, made: Sampled) -> int:
        if chunk.number >= len(verdicts):  # else a dead worker had said it before
            ahead[chunk.number] = made
        while (turn := ahead.pop(len(verdicts), None)) is not None:
            if watch is not None:
                watch(parts[len(verdicts)], turn.images, turn.verdict.difficulty)
            verdicts.append(turn.verdict)
            pool.job.progress("generating", min(len(rows), len(verdicts) * batch), len(rows))
        return 1

    facts, _ = pool.first_hello()
    pool.work(
        [Piece("batch", number) for number in range(len(parts))],
        lambda chunk: _task(parts[chunk.number], facts.generator, starts),
        said,
        lambda: "these images are made anew next time",
    )
    return joined(verdicts)


def _task(rows: tuple[PlanRow, ...], generator: str, starts: Starts | None) -> SampleTask:
    return SampleTask(rows, generator, starts.needed_by(rows) if starts else None)
