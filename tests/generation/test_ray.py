"""The same plan on a Ray cluster of several machines (local ones), one of which dies: the result of one process.

Ray is an extra and takes half a minute to start, so this runs only where it is installed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dcdm_cli.crew import ray_crew
from dcdm_cli.crew.boss import Crew
from dcdm_cli.crew.messages import Message
from dcdm_cli.data.shard_files import Layout
from dcdm_cli.errors import CapabilityError, NotFoundError
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.site import Generated, run_shards
from dcdm_cli.generation.workers import run_crew
from dcdm_cli.job import Job

from .fakes import NAMES, FakeMaker, contents, fake_measure, fake_plan, open_fake

PLAN = fake_plan(160, shard_size=16)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'export'}"  # actors have to find the tests' workers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    machines.add_node(num_cpus=1)
    found = ray_crew.connect(machines.address)
    assert (found.gpus, found.nodes, found.cpus) == (0, 2, 1)
    yield machines
    ray_crew.disconnect()
    machines.shutdown()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


class Recorder(ray_crew.RayTransport):
    """Remembers who died."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.died: list[str] = []

    def hear(self, timeout_s: float) -> list[Message]:
        heard = super().hear(timeout_s)
        self.died += [str(message.value) for message in heard if message.kind == "died"]
        return heard


def on_ray(
    folder: Path, format: str, plan: Plan = PLAN, *, deliver: bool, workers: int, job: Job | None = None
) -> tuple[Generated, list[str]]:
    layout, job = Layout(folder, format, "png", NAMES, plan.shards), job or Job()
    transport = Recorder(partial(open_fake, deliver=deliver, seconds=0.02), "cpu", workers, {"num_cpus": 1})
    with Crew(transport, job) as crew:
        while len(crew.hellos) < workers:  # or the first might do all the work
            for message in transport.hear(0.25):
                crew._hear_idle(message)
        return run_crew(plan, crew, layout, job, deliver=deliver), transport.died


def alone(folder: Path, format: str, plan: Plan = PLAN) -> dict[str, bytes]:
    run_shards(plan, FakeMaker(measure=fake_measure), Layout(folder, format, "png", NAMES, plan.shards), Job())
    return contents(folder)


@pytest.mark.slow
def test_a_machine_that_dies_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    (dying,) = cluster.worker_nodes
    at = threading.Event()
    job = Job(progress=lambda what, done, total: at.set() if done > 40 else None)
    killer = threading.Thread(target=lambda: at.wait(60) and cluster.remove_node(dying, allow_graceful=False))
    killer.start()
    made, died = on_ray(tmp_path / "ray", "webdataset", deliver=False, workers=2, job=job)
    killer.join()
    assert (made.images, made.failed) == (160, 0) and len(died) >= 1
    assert contents(tmp_path / "ray") == alone(tmp_path / "alone", "webdataset")


@pytest.mark.slow
def test_results_that_are_sent_to_the_driver(cluster: Any, tmp_path: Path) -> None:
    plan = fake_plan(24, shard_size=16)
    made, _ = on_ray(tmp_path / "ray", "folder", plan, deliver=True, workers=1)
    assert (made.images, made.failed, made.made) == (24, 0, 24)
    assert contents(tmp_path / "ray") == alone(tmp_path / "alone", "folder", plan)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapabilityError, match="not installed") as caught:
        ray_crew.connect(None)
    assert "dcdm-cli[ray]" in caught.value.hint


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x"])
def test_an_address_where_nobody_answers(address: str) -> None:
    pytest.importorskip("ray")
    started = time.monotonic()
    with pytest.raises(NotFoundError, match="no Ray cluster answers at"):
        ray_crew.connect(address)
    assert time.monotonic() - started < 20
