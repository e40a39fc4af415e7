"""Every accelerated path works on the GPU it was given, whichever one is current. The GPUs are imitated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcdm_cli.backends.cpu_streams import Streams
from dcdm_cli.backends.cuda_graphs import CudaGraphs
from dcdm_cli.backends.ort_backend import OrtNetwork, _providers
from dcdm_cli.difficulty.fitting import seeded as seeding

from ..fake_cuda import FakeCuda, pretend_gpus
from .toys import toy_denoiser, toy_inputs


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return pretend_gpus(monkeypatch, 2)


def test_cuda_graphs_are_recorded_and_replayed_on_their_gpu(two: FakeCuda) -> None:
    ran: list[int] = []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        ran.append(two.current)
        return tensor * 2

    graphs = CudaGraphs(double, "cuda:1")
    for _ in range(3):
        assert torch.equal(graphs(torch.ones(2)), torch.full((2,), 2.0))
    assert two.events == [("wait", 1), ("wait", 1), ("capture", 1), ("replay", 1), ("replay", 1)]
    assert ran == [1, 1] and two.current == 0


@pytest.mark.parametrize(("device", "current", "number"), [("cuda:1", 0, 1), ("cuda", 1, 1), ("cuda:0", 1, 0)])
def test_onnxruntime_opens_on_the_gpu_it_is_given(
    two: FakeCuda, monkeypatch: pytest.MonkeyPatch, device: str, current: int, number: int
) -> None:
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    two.current = current
    assert _providers(device)[0][1]["device_id"] == number


def test_onnxruntime_waits_for_and_binds_to_its_own_gpu(
    two: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bound: list[tuple[str, int]] = []

    class Session:
        def io_binding(self):
            return self

        def bind_input(self, name, kind, number, *_):
            bound.append((kind, number))

        bind_output = bind_input

        def run_with_iobinding(self, binding):
            bound.append(("run", two.events[-1][1]))

    monkeypatch.setattr("dcdm_cli.backends.ort_backend._open_session", lambda *_: Session())
    monkeypatch.setattr("dcdm_cli.backends.ort_backend.empty_output", lambda *_: torch.zeros(2, 4, 8, 8))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, dtype=None: self)
    OrtNetwork(tmp_path, toy_denoiser(tmp_path), "cuda:1", Streams(1, 1, 4, 1), spinning=True)(*toy_inputs(2))
    assert two.events == [("synchronize", 1)] and set(bound) == {("cuda", 1), ("run", 1)}


def test_a_classifiers_seed_goes_to_its_gpu(two: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append(two.current))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    with seeding(3, torch.device("cuda:1")):
        pass
    assert seeded == [1]
