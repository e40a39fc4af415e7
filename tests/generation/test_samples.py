"""Images that are only looked at come from a worker pool as from one process: each once, in the order of the rows."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from dcdm_cli.errors import InterruptedRunError, MismatchError
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.samples import SampleTask, SampleWorker, sample_rows
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.local import LocalTransport

from .fakes import SOURCES, STARTS, FakeMaker, fake_measure, fake_plan

ROWS = fake_plan(61, shard_size=100).rows()


def open_sampler(device: str, should_stop: Callable[[], bool], *, seconds: float = 0.0) -> SampleWorker:
    return SampleWorker(FakeMaker(seconds=seconds * (device == "slow"), measure=fake_measure))


def sampled(job: Job, transport: LocalTransport) -> tuple[list[int], np.ndarray, np.ndarray]:
    seen: list[int] = []

    def watch(rows: Sequence[PlanRow], images: np.ndarray, realised: np.ndarray) -> None:
        assert (images == np.stack([FakeMaker()._image(row) for row in rows])).all()
        assert np.allclose(realised, fake_measure(images, np.zeros(0))[0])
        seen.extend(row.index for row in rows)

    with WorkerPool(transport, job) as pool:
        made = sample_rows(ROWS, pool, 4, watch)
        return seen, made.difficulty, made.predicted


def test_they_are_handed_over_once_and_in_order_whoever_dies() -> None:
    transport = LocalTransport(partial(open_sampler, seconds=0.01), ["cpu", "slow"], threads=1)
    killed: list[int] = []

    def kill_the_slow_one(what: str, done: int, total: int) -> None:
        if not killed and done >= 20 and 1 in transport._workers:
            killed.append(transport._workers[1][0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    seen, realised, predicted = sampled(Job(progress=kill_the_slow_one), transport)
    images = np.stack([FakeMaker()._image(row) for row in ROWS])
    assert killed and seen == list(range(61))
    np.testing.assert_allclose(realised, fake_measure(images, np.zeros(0))[0])
    assert predicted.tolist() == [row.label for row in ROWS]


def test_a_stop_is_said() -> None:
    transport, told = LocalTransport(partial(open_sampler, seconds=0.01), ["slow"], threads=1), []
    job = Job(progress=lambda *said: told.append(said), stop_signal=lambda: "SIGINT" if told else None)
    with pytest.raises(InterruptedRunError, match="made anew next time"):
        sampled(job, transport)
    assert 1 <= len(told) < 16


def test_another_workers_model_must_be_the_same() -> None:
    with pytest.raises(MismatchError, match="the generator other"):
        list(SampleWorker(FakeMaker(measure=fake_measure)).run(SampleTask(tuple(ROWS[:4]), "other")))


def open_plain_sampler(device: str, should_stop: Callable[[], bool]) -> SampleWorker:
    return SampleWorker(FakeMaker(measure=fake_measure))


def test_what_they_start_from_comes_with_the_task() -> None:
    rows = fake_plan(10, shard_size=100, sources=SOURCES).rows()
    job, seen = Job(), []
    with WorkerPool(LocalTransport(open_plain_sampler, ["cpu"], threads=1), job) as pool:
        sample_rows(rows, pool, 4, lambda rows, images, realised: seen.extend(images), STARTS)
    maker = FakeMaker()
    maker.begin_from(STARTS)
    assert (np.stack(seen) == np.stack([maker._image(row) for row in rows])).all()
