"""The same plan on a Ray cluster of several machines (local ones), one of which dies: the result of one process.

Ray is an extra: this runs only where it is installed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty import feature_cache, stream
from dcdm_cli.difficulty.classifier import build_classifier
from dcdm_cli.difficulty.crossfit import CrossFit
from dcdm_cli.difficulty.features import open_extractor
from dcdm_cli.difficulty.scorer import save_scorer
from dcdm_cli.errors import CapabilityError, NotFoundError
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.run import Generated, run_shards
from dcdm_cli.generation.samples import sample_rows
from dcdm_cli.generation.workers import run_pool
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig
from dcdm_cli.workers import ray_transport
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.messages import Message

from .fakes import NAMES, FakeMaker, contents, fake_measure, fake_plan, open_fake
from .test_samples import open_sampler

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
    found = ray_transport.connect(machines.address)
    assert (found.gpus, found.nodes, found.cpus) == (0, 2, 1)
    yield machines
    ray_transport.disconnect()
    machines.shutdown()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


class Recorder(ray_transport.RayTransport):
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
    with WorkerPool(transport, job) as pool:
        while len(pool.hellos) < workers:  # or the first might do all the work
            for message in transport.hear(0.25):
                pool._hear_idle(message)
        return run_pool(plan, pool, layout, job, deliver=deliver), transport.died


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


@pytest.mark.slow
def test_images_that_are_only_looked_at(cluster: Any) -> None:
    rows = fake_plan(10, shard_size=10).rows()
    seen: list[int] = []
    with WorkerPool(ray_transport.RayTransport(open_sampler, "cpu", 1, {"num_cpus": 1}), Job()) as pool:
        verdict = sample_rows(rows, pool, 4, lambda batch, images, s: seen.extend(row.index for row in batch))
    realised = verdict.difficulty
    images = np.stack([FakeMaker()._image(row) for row in rows])
    assert seen == list(range(10))
    np.testing.assert_allclose(realised, fake_measure(images, np.zeros(0))[0])


@pytest.mark.slow
def test_scores_of_a_large_set(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 4)
    config = ClassifierConfig(model="resnet10t", model_args={"channels": [8, 12, 16, 32]}, image_size=32)
    models = (build_classifier(config, len(NAMES)).eval(), build_classifier(config, len(NAMES)).eval())
    save_scorer(tmp_path / "scorer", CrossFit({}, models, 1.0, 0.0), NAMES, config)
    for number, row in enumerate(fake_plan(10, shard_size=10).rows()):
        Image.fromarray(FakeMaker()._image(row)).save(tmp_path / f"{number}.png")
    labels, asked = np.arange(10) % 3, np.arange(10, dtype=np.int16)[None] % 2
    data = stream.ScoreSet([tmp_path / f"{number}.png" for number in range(10)], labels, asked)
    opener = partial(stream.open_chunk_scorer, tmp_path / "scorer", 1)
    here = stream.score_in_chunks(data, lambda: opener("cpu", lambda: False), tmp_path / "here", Job())
    with WorkerPool(ray_transport.RayTransport(opener, "cpu", 1, {"num_cpus": 1}), Job()) as pool:
        there = stream.score_in_chunks(data, lambda: pytest.fail("not here"), tmp_path / "there", Job(), pool)
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_features_of_many_images(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "CHUNK", 4)
    rows = []
    for number, row in enumerate(fake_plan(10, shard_size=10).rows()):
        Image.fromarray(FakeMaker()._image(row)).save(tmp_path / f"{number}.png")
        rows.append({"sample_id": f"{number:032x}", "path": f"{number}.png", "label": row.label})
    images, extractor = Manifest.from_rows(rows, NAMES, tmp_path), open_extractor("packaged", 32)
    here = feature_cache.FeatureCache(tmp_path / "here").of(extractor, images, Job())
    pool = lambda opener: WorkerPool(ray_transport.RayTransport(opener, "cpu", 1, {"num_cpus": 1}), Job())  # noqa: E731
    there = feature_cache.FeatureCache(tmp_path / "there", pool, 1).of(extractor, images, Job())
    np.testing.assert_allclose(there.take(np.arange(10)), here.take(np.arange(10)), rtol=2e-3, atol=1e-3)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapabilityError, match="not installed") as caught:
        ray_transport.connect(None)
    assert "dcdm-cli[ray]" in caught.value.hint


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x"])
def test_an_address_where_nobody_answers(address: str) -> None:
    pytest.importorskip("ray")
    started = time.monotonic()
    with pytest.raises(NotFoundError, match="no Ray cluster answers at"):
        ray_transport.connect(address)
    assert time.monotonic() - started < 20
