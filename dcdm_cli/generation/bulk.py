"""Executing a plan: shard after shard, and at the end the folder that training loaders read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dcdm_cli.data.manifest import Manifest, read_manifest
from dcdm_cli.data.shard_files import Layout
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.ledger import Ledger, shard_writer
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.plan_file import AnyPlan
from dcdm_cli.generation.shards import (
    Encoders,
    Facts,
    MadeShard,
    Maker,
    Measure,
    Progress,
    ShardTask,
    make_batches,
    write_shard,
)  # fmt: skip
from dcdm_cli.job import Job

__all__ = ["EngineMaker", "Generated", "Measure", "run_plan", "run_shards"]


@dataclass(frozen=True)
class Generated:
    """images: finished; failed: blank ones, not written; made: rendered by this call, not resumed."""

    folder: Path
    images: int
    failed: int
    made: int

    @cached_property
    def manifest(self) -> Manifest:
        """Rows of the finished images."""
        return read_manifest(self.folder / "samples.parquet", made_by="dcdm generate")


class EngineMaker:
    """An engine and a scorer as a `Maker`."""

    def __init__(self, engine: Engine, measure: Measure | None = None) -> None:
        info = engine.info
        self.engine, self.measure, self.batch_size = engine, measure, engine.config.batch_size
        self.facts = Facts(engine.generator, tuple(info.class_names), info.base, engine.denoiser.name)

    def render(self, rows: Sequence[PlanRow], job: Job) -> Iterator[tuple[Sequence[PlanRow], np.ndarray]]:
        return render(self.engine, rows, job)


def run_plan(
    plan: AnyPlan, engine: Engine, folder: Path, job: Job, measure: Measure | None = None, *, format: str = "folder"
) -> Generated:
    """Makes what is missing of `plan` in `folder`; the same call again continues or changes nothing.

    measure: (images uint8 [B,H,W,3], labels int64 [B]) -> (difficulty [B], predicted label [B]).
    Raises MismatchError when the folder holds another plan, InterruptedRunError when asked to stop.
    """
    layout = Layout(folder, format, engine.config.image_format, tuple(engine.info.class_names), plan.shards)
    return run_shards(plan, EngineMaker(engine, measure), layout, job)


def run_shards(plan: AnyPlan, maker: Maker, layout: Layout, job: Job, *, verify: bool = False) -> Generated:
    """`run_plan` for any maker and format, in this process."""
    ledger, made = Ledger.open(plan, layout, maker.batch_size, verify=verify), 0
    with Encoders() as encoders:
        for shard in ledger.unfinished():
            inside = 0
            for event in make_shard(plan.shard_rows(shard), maker, layout, encoders, job):
                if isinstance(event, MadeShard):
                    ledger.publish(event)
                    inside = 0
                else:
                    made, inside = made + event.new, event.done
                    job.progress("generating", ledger.done + inside, len(plan))
            kept = inside if layout.format == "folder" else 0
            job.stop_if_asked(f"{ledger.done + kept} of {len(plan)} images are finished")
    ledger.conclude(maker.facts.base, maker.facts.backend)
    return Generated(layout.folder, ledger.images, ledger.failed, made)


def make_shard(
    rows: Sequence[PlanRow], maker: Maker, layout: Layout, encoders: Encoders, job: Job
) -> Iterator[Progress | MadeShard]:
    """Makes what is missing of a shard: progress, first of what was there before, and at the end the shard."""
    shard = rows[0].shard
    writer, done = shard_writer(layout, shard, [row.sample_id for row in rows], maker.batch_size)
    task = ShardTask(shard, tuple(rows[len(done) :]), len(done))
    batches = make_batches(task, maker, layout, encoders, job, writer.store)
    yield from write_shard(task, batches, writer, done)
