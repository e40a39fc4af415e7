"""Generation by a worker pool: what a worker does with a shard, and a run whose shards are made elsewhere.

Workers write where the coordinator can see it and report the finished shard, or, without a shared disk, deliver encoded
images and the coordinator writes. The coordinator alone publishes, so that a shard that was made twice appears once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dcdm_cli.errors import DcdmError
from dcdm_cli.generation.layout import Layout, ShardWriter, keep_nothing
from dcdm_cli.generation.ledger import Ledger, shard_writer
from dcdm_cli.generation.plan_file import AnyPlan, PlanFile
from dcdm_cli.generation.run import Generated, ShardCoordinator, check_generator, make_shard
from dcdm_cli.generation.shards import (
    Batch,
    Encoders,
    Facts,
    MadeShard,
    Maker,
    ShardProgress,
    ShardTask,
    make_batches,
)  # fmt: skip
from dcdm_cli.generation.starts import Starts
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.messages import unshared

SHARE = "put the run folder on a disk that all machines share, or send the images: --results driver"


@dataclass(frozen=True)
class Shard:
    """A shard as a pool's task; its text is for people."""

    number: int

    def __str__(self) -> str:
        return f"shard {self.number}"


class ShardWorker:
    """Holds the model and makes the shards it is given. hello: (facts, batch size). deliver: do not write, say."""

    def __init__(self, maker: Maker, should_stop: Callable[[], bool], *, deliver: bool = False) -> None:
        self.maker, self.deliver, self.encoders = maker, deliver, Encoders()
        self.job = Job(stop_signal=lambda: "the coordinator" if should_stop() else None)
        self.hello: tuple[Facts, int] = (maker.facts, maker.batch_size)
        self.sees = ""  # the plan whose folder this machine is known to share

    def run(self, task: ShardTask) -> Iterator[ShardProgress | MadeShard | Batch]:
        if task.starts is not None:
            self.maker.begin_from(task.starts)
        if self.deliver:
            # in the other case `make_shard` does it
            check_generator(task.generator, self.maker.facts)
            yield from make_batches(task, self.maker, self.encoders, self.job, keep_nothing)
        else:
            if self.sees != task.plan:
                check_folder(task)
                self.sees = task.plan
            yield from make_shard(task, self.maker, self.encoders, self.job)


def run_pool(
    plan: AnyPlan,
    pool: WorkerPool,
    layout: Layout,
    job: Job,
    *,
    deliver: bool = False,
    verify: bool = False,
    starts: Starts | None = None,
) -> Generated:
    """`run_shards` by a worker pool of `ShardWorker`s, which end in the same files. deliver: as the workers were made.

    starts: what images begin from; each shard takes what it needs along.
    """
    facts, batch = pool.first_hello()
    check_generator(plan.generator, facts)
    ledger = Ledger.open(plan, layout, batch, verify=verify)
    here = ReceivingCoordinator(plan, ledger, job, starts) if deliver else ShardCoordinator(plan, ledger, job, starts)
    try:
        pool.work(
            [Shard(number) for number in ledger.unfinished()],
            lambda shard: here.order(shard.number),
            lambda shard, value: here.said(shard.number, value),
            here.saved,
        )
    finally:
        # archives that are not finished would leave their temporary files
        if isinstance(here, ReceivingCoordinator):
            here.abandon()
    return here.finish(facts)


class ReceivingCoordinator(ShardCoordinator):
    """Writes the images that workers deliver."""

    def __init__(self, plan: AnyPlan, ledger: Ledger, job: Job, starts: Starts | None = None) -> None:
        super().__init__(plan, ledger, job, starts)
        self.open: dict[int, tuple[ShardTask, ShardWriter, list[dict[str, Any]]]] = {}

    def order(self, shard: int) -> ShardTask:
        """What is missing of the shard; a writer from an earlier attempt is thrown away."""
        if shard in self.open:
            self.open.pop(shard)[1].abandon()
        task = super().order(shard)
        ids = [row.sample_id for row in task.rows]
        writer, done = shard_writer(self.ledger.layout, shard, ids)
        task = replace(task, rows=task.rows[len(done) :], start=len(done))
        self.open[shard] = (task, writer, done)
        if not task.rows:  # all there, but killed before it was recorded: nothing will be delivered
            self._receive(shard, Batch([], []))
        return task

    def said(self, shard: int, value: Any) -> int:
        return self._receive(shard, value) if isinstance(value, Batch) else super().said(shard, value)

    def abandon(self) -> None:
        for _, writer, _ in self.open.values():
            writer.abandon()
        self.open = {}

    def _receive(self, shard: int, batch: Batch) -> int:
        task, writer, entries = self.open[shard]
        for entry, content in zip(batch.entries, batch.contents, strict=True):
            # nobody has stored it: workers that deliver keep nothing
            if content is not None:
                writer.store(entry, content)
        entries.extend(writer.add(batch.entries, batch.contents))
        finished = super().said(shard, ShardProgress(shard, len(entries), len(batch.entries)))
        if finished == task.start + len(task.rows):
            content = writer.finish()  # while it is open: where this fails, `abandon` removes what was begun
            del self.open[shard]
            super().said(shard, MadeShard(shard, entries, content))
        return finished


def check_folder(task: ShardTask, patience_s: float = 10.0) -> None:
    """Raises NotFoundError when this machine does not see the coordinator's folder; network disks may take seconds."""
    folder, deadline = task.layout.folder, time.monotonic() + patience_s
    while True:
        try:
            if PlanFile(folder / "plan.parquet").hash == task.plan:
                return
        except DcdmError:
            pass  # not there, or an older run's
        if time.monotonic() > deadline:
            raise unshared(folder, SHARE)
        time.sleep(0.5)
