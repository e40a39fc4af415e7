"""A run of a plan from its coordinator's side: shard after shard, and at the end what training loaders read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from dcdm_cli.data.manifest import Manifest, as_far_as_there, read_manifest, share_true
from dcdm_cli.difficulty.verdict import Measure
from dcdm_cli.errors import MismatchError, NumericalError
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.ledger import REJECTED, Ledger, shard_writer
from dcdm_cli.generation.plan_file import AnyPlan
from dcdm_cli.generation.shards import (
    Encoders,
    Facts,
    MadeShard,
    Maker,
    ShardProgress,
    ShardTask,
    make_batches,
    write_shard,
)
from dcdm_cli.generation.starts import Starts
from dcdm_cli.run.progress import Job

if TYPE_CHECKING:
    from dcdm_cli.generation.engine import Engine


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

    @cached_property
    def label_checked(self) -> float | None:
        """Share of the checked images that show their label; None where none was checked."""
        file, name = self.folder / "samples.parquet", "label_checked"
        if name not in pq.read_schema(file).names:  # finished before there were checks
            return None
        return share_true(pq.read_table(file, columns=[name])[name])

    def texts(self, name: str) -> list[str | None]:
        """A column of texts; only None where the images were finished before there was such a column."""
        file = self.folder / "samples.parquet"
        there = as_far_as_there(file, [name])
        return pq.read_table(file, columns=there)[name].to_pylist() if there else [None] * self.images

    def columns(self, *names: str) -> list[np.ndarray]:
        """Single columns of the manifest, as `Manifest.column` gives them, without the rest of the table."""
        table = pq.read_table(self.folder / "samples.parquet", columns=list(names))
        return [Manifest(table, ()).column(name) for name in names]


def run_shards(plan: AnyPlan, maker: Maker, layout: Layout, job: Job, *, verify: bool = False) -> Generated:
    """Makes what is missing of a plan, in this process; the same call again continues or changes nothing.

    verify: compare what is finished with its hashes first. Raises MismatchError when the folder holds another plan or
    format, InterruptedRunError when asked to stop.
    """
    ledger = Ledger.open(plan, layout, maker.batch_size, verify=verify)
    here = ShardCoordinator(plan, ledger, job)
    with Encoders() as encoders:
        for shard in ledger.unfinished():
            job.stop_if_asked(here.saved())  # networks were opened: that took seconds
            for event in make_shard(here.order(shard), maker, encoders, job):
                here.said(shard, event)
        job.stop_if_asked(here.saved())
    return here.finish(maker.facts)


def make_shard(task: ShardTask, maker: Maker, encoders: Encoders, job: Job) -> Iterator[ShardProgress | MadeShard]:
    """Makes what is missing of a whole shard: progress, first of what was there before, and at the end the shard.

    Raises MismatchError when the maker's model is not the one that the plan was made for.
    """
    check_generator(task.generator, maker.facts)
    writer, done = shard_writer(task.layout, task.shard, [row.sample_id for row in task.rows])
    rest = replace(task, rows=task.rows[len(done) :], start=len(done))
    yield from write_shard(rest, make_batches(rest, maker, encoders, job, writer.store), writer, done)


def run_part(plan: AnyPlan, maker: Maker, layout: Layout, job: Job, shards: Sequence[int]) -> Generated:
    """Makes what is missing of some shards, while other processes may make the rest in the same folder. What other
    tools read is not written: that is for whoever sees the whole. A shard that another process is at is left to it."""
    ledger = Ledger.open(plan, layout, maker.batch_size, shards=shards)
    here = ShardCoordinator(plan, ledger, job)
    with Encoders() as encoders:
        for shard in ledger.unfinished():
            job.stop_if_asked(here.saved())
            with ledger.lock(shard) as free:
                for event in make_shard(here.order(shard), maker, encoders, job) if free else ():
                    here.said(shard, event)
        job.stop_if_asked(here.saved())
    return Generated(layout.folder, ledger.images, ledger.failed, here.made)


class ShardCoordinator:
    """A run as its coordinator sees it: orders for shards, and what to do with what is said of them."""

    def __init__(self, plan: AnyPlan, ledger: Ledger, job: Job, starts: Starts | None = None) -> None:
        """starts: handed over with the orders, to workers that have none."""
        self.plan, self.ledger, self.job, self.starts = plan, ledger, job, starts
        self.made = 0
        self.inside: dict[int, int] = {}  # finished images of unfinished shards

    def order(self, shard: int) -> ShardTask:
        rows = tuple(self.plan.shard_rows(shard))
        starts = self.starts.needed_by(rows) if self.starts else None
        return ShardTask(shard, rows, self.ledger.layout, self.plan.generator, self.plan.hash, starts=starts)

    def said(self, shard: int, value: ShardProgress | MadeShard) -> int:
        """Returns how many images of the shard are finished."""
        if isinstance(value, MadeShard):
            self.ledger.publish(value)
            self.inside.pop(shard, None)
            return len(value.entries)
        self.made += value.new
        # one whose worker died after its last word is made twice, and counts once
        if shard not in self.ledger.finished:
            self.inside[shard] = value.done
        if value.done:
            self.job.progress("generating", self.ledger.done + sum(self.inside.values()), self.ledger.rows)
        return value.done

    def saved(self) -> str:
        # a folder's unfinished shard is gone on with by its journal, an archive's starts over
        kept = sum(self.inside.values()) if self.ledger.layout.format == "folder" else 0
        return f"{self.ledger.done + kept} of {self.ledger.rows} images are finished"

    def finish(self, facts: Facts) -> Generated:
        """Raises NumericalError when not one image came out; the list of them is written first."""
        self.ledger.conclude(facts.base, facts.backend)
        if self.ledger.failed and not self.ledger.images:
            rejected = self.ledger.layout.folder / REJECTED
            raise NumericalError(
                f"all {self.ledger.failed} images are blank: the sampler or the decoder overflows ({rejected})",
                "use --precision fp32 and other sampler settings (--clip-range), then dcdm generate --force",
                file=rejected,
            )
        return Generated(self.ledger.layout.folder, self.ledger.images, self.ledger.failed, self.made)


def check_generator(wanted: str, facts: Facts) -> None:
    if facts.generator != wanted:
        raise MismatchError(
            f"the plan was made for the generator {wanted}, the model and settings here are {facts.generator}",
            "make a new plan with dcdm generate --plan, or restore the adapter and the sampler settings",
        )


def run_plan(
    plan: AnyPlan, engine: Engine, folder: Path, job: Job, measure: Measure | None = None, *, format: str = "folder"
) -> Generated:
    """Makes what is missing of `plan` in `folder`, as PNG; the same call again continues or changes nothing.

    measure: scores what was made and, with `attempts`, chooses among draws.
    Raises MismatchError when the folder holds another plan, InterruptedRunError when asked to stop.
    """
    from dcdm_cli.generation.render import EngineMaker  # not above: who only coordinates needs no torch

    maker = EngineMaker(engine, measure)
    layout = Layout(folder, format, "png", maker.facts.class_names, plan.shards)
    return run_shards(plan, maker, layout, job)
