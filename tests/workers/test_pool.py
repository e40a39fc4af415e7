"""Tasks are done whatever happens to workers, and failures arrive with their remedy."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dcdm_cli.errors import DcdmError, InterruptedRunError, OutOfMemoryError, StorageError
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.coordinator import MAX_DEATHS, WorkerPool
from dcdm_cli.workers.local import LocalTransport

from .toys import ToyTask, open_toy


def work(
    tasks: Sequence[ToyTask], devices: Sequence[str] = ("a", "b"), *, stop_after: int | None = None
) -> tuple[list[tuple[str, int]], LocalTransport]:
    """stop_after: so many steps are heard before somebody asks to stop."""
    heard: list[tuple[str, int]] = []
    job = Job(stop_signal=lambda: "SIGTERM" if stop_after is not None and len(heard) >= stop_after else None)

    def said(task: ToyTask, value: tuple[str, int]) -> int:
        assert value[0] == task.name
        heard.append(value)
        return value[1]

    transport = LocalTransport(open_toy, devices, threads=1)
    with WorkerPool(transport, job) as pool:
        pool.first_hello()
        pool.work(tasks, lambda task: task, said, lambda: f"{len(heard)} heard")
    assert transport.processes == []
    return heard, transport


def test_every_task_is_done_once() -> None:
    heard, _ = work([ToyTask(str(i)) for i in range(7)])
    assert Counter(heard) == Counter((str(i), step) for i in range(7) for step in (1, 2, 3))


def test_a_dead_workers_task_is_done_by_another(tmp_path: Path) -> None:
    tasks = [ToyTask(str(i), does="die once" if i % 2 else "", folder=str(tmp_path)) for i in range(4)]
    heard, _ = work(tasks)
    assert {name for name, step in heard if step == 3} == {"0", "1", "2", "3"}


def test_a_task_that_always_ends_its_worker_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(
        DcdmError, match=rf"ended its worker {MAX_DEATHS} times in a row \(killed by SIGKILL\)"
    ) as caught:
        work([ToyTask("poison", does="die", folder=str(tmp_path))], devices=["a"])
    assert "--batch-size" in caught.value.hint


def test_a_worker_that_never_opens_is_given_up() -> None:
    with pytest.raises(DcdmError, match=r"worker 0 ended 5 times before it was ready \(exit code 7\)"):
        work([ToyTask("x")], devices=["none"])


@pytest.mark.parametrize(
    ("does", "kind", "says"),
    [
        ("disk full", StorageError, "cannot write x: no space"),
        ("memory", OutOfMemoryError, "ran out of memory: of the device"),
        ("bug", DcdmError, "a worker failed: ZeroDivisionError: oops"),
        ("a pipe of its own", DcdmError, "a worker failed: EOFError: of its own"),
    ],
)
def test_a_failure_arrives_as_what_it_is(does: str, kind: type[DcdmError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        work([ToyTask("good", step_s=0.05), ToyTask("bad", does=does)])
    assert caught.value.hint
    if does == "disk full":
        assert caught.value.file == "x"


def test_a_stop_lets_workers_finish_their_step() -> None:
    with pytest.raises(InterruptedRunError, match="heard") as caught:
        work([ToyTask(str(i), steps=10_000, step_s=0.01) for i in range(3)], stop_after=1)
    assert caught.value.code == 143


def test_workers_ignore_the_signals_of_the_terminal() -> None:
    transport = LocalTransport(open_toy, ["a"], threads=1)
    heard: list[int] = []

    def said(task: ToyTask, value: tuple[str, int]) -> int:
        if value[1] == 1:
            for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, name)
        heard.append(value[1])
        return value[1]

    with WorkerPool(transport, Job()) as pool:
        pid = pool.first_hello()["pid"]
        pool.work([ToyTask("x", step_s=0.05)], lambda task: task, said, str)
    assert heard == [1, 2, 3]


def test_a_worker_whose_boss_is_gone_leaves() -> None:
    transport = LocalTransport(open_toy, ["a"], threads=1)
    with WorkerPool(transport, Job()) as pool:
        pool.first_hello()
        (process, pipe), *_ = transport._workers.values()
        transport.give(0, ToyTask("long", steps=100_000, step_s=0.01))
        threading.Timer(0.2, pipe.close).start()
        process.join(20)
        assert process.exitcode == 0
        transport._workers.clear()


def test_each_worker_has_its_own_threads() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    work([ToyTask("x")], devices=["a"])
    assert os.environ.get("OMP_NUM_THREADS") == before
