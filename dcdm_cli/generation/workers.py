"""Generation by a crew: what a worker needs to hold the model and does with a shard, and a run whose shards are made
elsewhere.

Workers write where the coordinator can see it and report the finished shard, or, without a shared disk, deliver encoded
images and the coordinator writes. The coordinator alone publishes, so that a shard that was made twice appears once.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcdm_cli.crew.coordinator import Crew
from dcdm_cli.crew.messages import unshared
from dcdm_cli.data.images import DecodeOptions, set_decode_options
from dcdm_cli.difficulty.label_check import open_label_check
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.difficulty.verdict import Measure, with_check
from dcdm_cli.errors import DcdmError
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.generation.layout import Layout, ShardWriter, keep_nothing
from dcdm_cli.generation.ledger import Ledger, shard_writer
from dcdm_cli.generation.plan_file import AnyPlan, PlanFile
from dcdm_cli.generation.render import EngineMaker
from dcdm_cli.generation.run import Generated, ShardCoordinator, check_generator, make_shard
from dcdm_cli.generation.samples import SampleWorker
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
from dcdm_cli.run.settings import GenerateConfig

SHARE = "put the run folder on a disk that all machines share, or send the images: --results driver"


@dataclass(frozen=True)
class Shard:
    """A shard as a crew's task; its text is for people."""

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
            check_generator(task.generator, self.maker.facts)
            yield from make_batches(task, self.maker, self.encoders, self.job, keep_nothing)
        else:
            if self.sees != task.plan:
                check_folder(task)
                self.sees = task.plan
            yield from make_shard(task, self.maker, self.encoders, self.job)


def run_crew(
    plan: AnyPlan,
    crew: Crew,
    layout: Layout,
    job: Job,
    *,
    deliver: bool = False,
    verify: bool = False,
    starts: Starts | None = None,
) -> Generated:
    """`run_shards` by a crew of `ShardWorker`s, which end in the same files. deliver: as the workers were made.

    starts: what images begin from; each shard takes what it needs along.
    """
    facts, batch = crew.first_hello()
    check_generator(plan.generator, facts)
    ledger = Ledger.open(plan, layout, batch, verify=verify)
    here = ReceivingCoordinator(plan, ledger, job, starts) if deliver else ShardCoordinator(plan, ledger, job, starts)
    try:
        crew.work(
            [Shard(number) for number in ledger.unfinished()],
            lambda shard: here.order(shard.number),
            lambda shard, value: here.said(shard.number, value),
            here.saved,
        )
    finally:
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
            if content is not None:
                writer.store(entry, content)
        entries.extend(writer.add(batch.entries, batch.contents))
        finished = super().said(shard, ShardProgress(shard, len(entries), len(batch.entries)))
        if finished == task.start + len(task.rows):
            del self.open[shard]
            super().said(shard, MadeShard(shard, entries, writer.finish()))
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


@dataclass(frozen=True)
class Parcel:
    """A folder's files by name, for machines that do not share a disk."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Parcel:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})

    def unpack(self) -> Path:
        """A temporary folder that lives as long as the process."""
        folder = Path(tempfile.mkdtemp(prefix="dcdm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass(frozen=True)
class Setup:
    """adapter, scorer, export, checker: folders; scorer None = images are not measured, export None = there is none to
    be used, checker None = labels are not checked. threads: CPU threads of one worker.

    deliver: images are sent to the coordinator; then the folders may be parcels.
    """

    adapter: Path | Parcel
    config: GenerateConfig
    scorer: Path | Parcel | None
    decode: DecodeOptions
    threads: int | None = None
    deliver: bool = False
    export: Path | Parcel | None = None
    checker: Path | Parcel | None = None


def open_shard_worker(setup: Setup, device: str, should_stop: Callable[[], bool]) -> ShardWorker:
    """A partial of this with `setup` is what a crew's transport takes."""
    return ShardWorker(_open_maker(setup, device), should_stop, deliver=setup.deliver)


def open_sample_worker(setup: Setup, device: str, should_stop: Callable[[], bool]) -> SampleWorker:
    """The same for images that are only looked at. A batch is short enough to finish."""
    return SampleWorker(_open_maker(setup, device))


def measure_with(scorer: Path | None, checker: Path | None, device: str) -> Measure | None:
    """Finished images measured by a stored scorer and looked at by a stored label check, where there are any."""
    measure = Scorer.load(scorer, device).verdicts if scorer else None
    return with_check(measure, open_label_check(checker, device) if checker else None)


def _open_maker(setup: Setup, device: str) -> EngineMaker:
    if setup.threads:
        torch.set_num_threads(setup.threads)
    set_decode_options(setup.decode)
    adapter, export = _here(setup.adapter), _here(setup.export) if setup.export else None
    engine = open_engine(adapter, setup.config, device, export=export)
    scorer, checker = (_here(folder) if folder else None for folder in (setup.scorer, setup.checker))
    return EngineMaker(engine, measure_with(scorer, checker, device))


def _here(folder: Path | Parcel) -> Path:
    if isinstance(folder, Parcel):
        return folder.unpack()
    if not folder.is_dir():
        raise unshared(folder, SHARE)
    return folder
