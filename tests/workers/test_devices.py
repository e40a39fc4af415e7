"""The device that was settled on is the one that everything uses."""

from __future__ import annotations

import pytest
import torch

from dcdm_cli.errors import CapabilityError, DcdmError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.devices import check_device, count_devices, on_device, settle_device, use_device
from dcdm_cli.workers.local import LocalTransport
from dcdm_cli.workers.messages import Failure
from dcdm_cli.workers.ray_transport import _opened

from ..fake_cuda import FakeCuda, pretend_gpus
from .gpu_toys import open_on_gpu


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return pretend_gpus(monkeypatch, 2)


def test_a_numbered_gpu_becomes_the_current_one(two: FakeCuda) -> None:
    assert settle_device("cuda:1") == ("cuda:1", "as requested")
    assert two.current == 0  # settled for others, perhaps
    use_device("cuda:1")
    assert torch.cuda.current_device() == 1
    for name in ("cuda", "cpu", "mps"):  # none of them names another GPU
        use_device(name)
    assert torch.cuda.current_device() == 1


def test_for_a_block_only(two: FakeCuda) -> None:
    with on_device("cuda:1"):
        assert two.current == 1
    with on_device("cpu"):
        assert two.current == 0


@pytest.mark.parametrize("use", [use_device, check_device, settle_device])
def test_a_number_that_is_not_there_names_those_that_are(two: FakeCuda, use) -> None:
    with pytest.raises(CapabilityError, match=r"'cuda:7' is not there: this process sees 2 cuda devices") as caught:
        use("cuda:7")
    assert "cuda:0 to cuda:1" in caught.value.hint and two.current == 0


def test_one_gpu_has_no_number_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 1)
    with pytest.raises(CapabilityError, match=r"sees 1 cuda device$") as caught:
        use_device("cuda:1")
    assert caught.value.hint.startswith("use cuda:0, or")


def test_there_is_one_cpu() -> None:
    assert count_devices("cpu") == 1
    with pytest.raises(CapabilityError, match="'cpu:3' is not there"):
        settle_device("cpu:3")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:", "cuda:-1", "", "cuda:1:2"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no device") as caught:
        settle_device(name)
    assert "cuda:1" in caught.value.hint


def test_a_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CapabilityError, match="'cuda:1' is not available here"):
        use_device("cuda:1")


def test_two_workers_each_have_their_own_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCDM_FAKE_GPUS", "2")
    heard: dict[int, int] = {}

    def said(task: int, value: tuple[int, int]) -> int:
        heard[value[0]] = value[1]
        return 1

    transport = LocalTransport(open_on_gpu, ["cuda:0", "cuda:1"], threads=1)
    with WorkerPool(transport, Job()) as pool:
        while len(pool.hellos) < 2:
            for message in transport.hear(60):
                pool._hear_idle(message)
        assert sorted(pool.hellos.values()) == [("cuda:0", 0), ("cuda:1", 1)]
        pool.work(range(4), lambda task: task, said, lambda: "")
    assert set(heard.values()) == {0, 1}


def test_a_worker_without_its_gpu_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCDM_FAKE_GPUS", "1")
    pool = WorkerPool(LocalTransport(open_on_gpu, ["cuda:1"], threads=1), Job())
    with pool, pytest.raises(DcdmError, match="'cuda:1' is not there"):
        pool.first_hello()


def test_a_worker_on_ray_too(two: FakeCuda) -> None:
    from dcdm_cli import __version__

    assert _opened(open_on_gpu, "cuda:1", __version__, lambda: False).hello == ("cuda:1", 1)
    failed = _opened(open_on_gpu, "cuda:4", __version__, lambda: False)
    assert isinstance(failed, Failure) and "'cuda:4' is not there" in failed.message
