"""Several processes make the shards of one plan; whatever happens to them, the result is that of one process."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from dcdm_cli.errors import InterruptedRunError, MismatchError, StorageError
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.run import Generated, run_shards
from dcdm_cli.generation.workers import run_pool
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.local import LocalTransport

from .fakes import NAMES, SOURCES, STARTS, FakeMaker, contents, fake_measure, fake_plan, open_fake

PLAN = fake_plan(120, shard_size=16)


class Killer:
    """Kills a random worker at random points of a run, `kills` times in all."""

    def __init__(self, transport: LocalTransport, kills: int, images: int) -> None:
        self.transport, self.rng = transport, random.Random(0)
        self.at = sorted(self.rng.sample(range(1, images * 9 // 10), kills))

    def progress(self, what: str, done: int, total: int) -> None:
        alive = [process for process in self.transport.processes if process.pid and process.is_alive()]
        if self.at and done >= self.at[0] and alive:
            self.at.pop(0)
            os.kill(self.rng.choice(alive).pid or 0, signal.SIGKILL)


def pooled(
    folder: Path, plan: Plan = PLAN, format: str = "folder", *, deliver: bool = False, seconds: float = 0.0,
    kills: int = 0, job: Job | None = None, devices: tuple[str, ...] = ("cpu", "cpu"),
) -> Generated:  # fmt: skip
    layout = Layout(folder, format, "png", NAMES, plan.shards)
    transport = LocalTransport(partial(open_fake, deliver=deliver, seconds=seconds), devices, threads=1)
    killer = Killer(transport, kills, len(plan))
    job = job or Job(progress=killer.progress)
    with WorkerPool(transport, job) as pool:
        made = run_pool(plan, pool, layout, job, deliver=deliver)
    assert not killer.at
    return made


def alone(folder: Path, plan: Plan = PLAN, format: str = "folder") -> Generated:
    layout = Layout(folder, format, "png", NAMES, plan.shards)
    return run_shards(plan, FakeMaker(measure=fake_measure), layout, Job())


@pytest.mark.parametrize(("format", "deliver"), [("folder", False), ("webdataset", True)])
def test_a_worker_pool_makes_what_one_process_makes(tmp_path: Path, format: str, deliver: bool) -> None:
    told: list[int] = []
    job = Job(progress=lambda what, done, total: told.append(done))
    made = pooled(tmp_path / "pool", format=format, deliver=deliver, job=job)
    assert (made.images, made.failed, made.made) == (120, 0, 120)
    assert told[-1] == 120 and told == sorted(told)  # one display for all
    alone(tmp_path / "alone", format=format)
    assert contents(tmp_path / "pool") == contents(tmp_path / "alone")


@pytest.mark.parametrize("deliver", [False, True])
def test_workers_are_handed_what_their_images_start_from(tmp_path: Path, deliver: bool) -> None:
    plan = fake_plan(40, shard_size=8, sources=SOURCES)
    pool_layout, layout = (Layout(tmp_path / name, "folder", "png", NAMES, plan.shards) for name in ("pool", "alone"))
    with WorkerPool(LocalTransport(partial(open_fake, deliver=deliver), ["cpu"], threads=1), Job()) as pool:
        run_pool(plan, pool, pool_layout, Job(), deliver=deliver, starts=STARTS)
    maker = FakeMaker(measure=fake_measure)
    maker.begin_from(STARTS)
    made = run_shards(plan, maker, layout, Job())
    assert contents(tmp_path / "pool") == contents(tmp_path / "alone")
    assert list(made.columns("source_id")[0]) == [row.source_id for row in plan.rows()]  # the manifest names them
    alone(tmp_path / "noise", plan)
    assert contents(tmp_path / "noise") != contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("format", "deliver"), [("folder", False), ("parquet", False), ("folder", True)])
def test_killed_workers_change_nothing(tmp_path: Path, format: str, deliver: bool) -> None:
    """The same with 20 kills in 2,000 images is part of benchmarks/bench_scaling.py."""
    plan = fake_plan(300, shard_size=20)
    made = pooled(tmp_path / "killed", plan, format, deliver=deliver, seconds=0.003, kills=4)
    assert (made.images, made.failed) == (300, 0)
    alone(tmp_path / "alone", plan, format)
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")
    assert not list((tmp_path / "killed").rglob("*.part")) + list((tmp_path / "killed").rglob("*.journal"))


@pytest.mark.parametrize("deliver", [False, True])
def test_a_stopped_worker_pool_goes_on_where_it_was(tmp_path: Path, deliver: bool) -> None:
    asked = threading.Event()
    job = Job(
        progress=lambda what, done, total: asked.set() if done >= 30 else None,
        stop_signal=lambda: "SIGINT" if asked.is_set() else None,
    )
    with pytest.raises(InterruptedRunError, match=r"\d+ of 120 images are finished") as caught:
        pooled(tmp_path / "stopped", deliver=deliver, seconds=0.01, job=job)
    kept = int(str(caught.value).split("; ")[1].split()[0])
    assert 30 <= kept < 120
    assert pooled(tmp_path / "stopped", deliver=deliver).made == 120 - kept
    alone(tmp_path / "alone")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "alone")


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_a_full_disk_on_one_worker_is_named_and_finished_shards_stay(tmp_path: Path, format: str) -> None:
    place, told = Layout(tmp_path / "full", format, "png", NAMES, PLAN.shards), []
    stopping = Job(
        progress=lambda what, done, total: told.append(done),
        stop_signal=lambda: "SIGINT" if told and told[-1] >= 40 else None,
    )
    with pytest.raises(InterruptedRunError):
        run_shards(PLAN, FakeMaker(measure=fake_measure), place, stopping)
    finished = {path: path.read_bytes() for path in place.folder.glob("shards/0*.json")}
    with pytest.raises(StorageError, match=r"cannot write .*File too large") as caught:
        pooled(place.folder, format=format, seconds=0.01, devices=("cpu", "full"))
    assert "finished work is kept" in caught.value.hint and len(finished) >= 2
    assert all(path.read_bytes() == content for path, content in finished.items())
    made = pooled(place.folder, format=format)
    alone(tmp_path / "alone", format=format)
    assert made.made <= 120 - 32 and contents(place.folder) == contents(tmp_path / "alone")


def test_a_worker_pool_with_another_model_is_refused(tmp_path: Path) -> None:
    plan = Plan(PLAN.table, "other", 0, PLAN.shard_size, PLAN.class_names)
    with pytest.raises(MismatchError, match="the model and settings here are fake"):
        pooled(tmp_path, plan)
    assert not (tmp_path / "plan.parquet").exists()


def test_a_coordinator_that_was_killed_leaves_nothing_to_clean_up_by_hand(tmp_path: Path) -> None:
    """Its workers notice, and the next run goes on."""
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    code = (
        "import sys; from pathlib import Path; from tests.generation.test_workers import *\n"
        "if __name__ == '__main__': pooled(Path(sys.argv[1]), seconds=0.05)"
    )
    (tmp_path / "coordinator.py").write_text(code)
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'export'}"}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "coordinator.py"), str(tmp_path / "killed")], env=env
    ) as process:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "killed").rglob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert 0 < len(list((tmp_path / "killed").rglob("*.png"))) < 120
    time.sleep(1.0)  # what an orphan needs to end its batch
    before = len(list((tmp_path / "killed").rglob("*.png")))
    time.sleep(0.5)
    assert len(list((tmp_path / "killed").rglob("*.png"))) == before
    pooled(tmp_path / "killed")
    alone(tmp_path / "alone")
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")
