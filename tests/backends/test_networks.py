"""ONNX Runtime and OpenVINO run a graph on any batch, however it is cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcdm_cli.backends.cpu_streams import Streams
from dcdm_cli.backends.ort_backend import OrtNetwork
from dcdm_cli.backends.ov_backend import OvNetwork
from dcdm_cli.errors import CapabilityError

from .toys import toy_denoiser, toy_inputs, toy_prediction

ROOT = Path(__file__).parents[2]
CHILD = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
Build = Callable[[Path, Any, Streams], Any]


def onnxruntime(folder: Path, network: Any, streams: Streams) -> OrtNetwork:
    return OrtNetwork(folder, network, "cpu", streams, spinning=False)


def openvino(folder: Path, network: Any, streams: Streams) -> OvNetwork:
    pytest.importorskip("openvino")
    return OvNetwork(folder, network, streams, images=4)


@pytest.fixture(params=[onnxruntime, openvino], ids=["onnxruntime", "openvino"])
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_every_batch_gives_what_the_arithmetic_says(build: Build, calls: int, count: int, tmp_path: Path) -> None:
    network = build(tmp_path, toy_denoiser(tmp_path, calls), Streams(count, 1, 3, calls))
    for images in (1, 2, 3, 5, 6, 7, 13, 4):
        inputs = toy_inputs(images * calls)
        made = network(*inputs)
        assert made.dtype == torch.float32 and made.shape == inputs[0].shape
        assert torch.allclose(made, toy_prediction(*inputs), atol=1e-4, rtol=1e-5)


def test_the_process_keeps_its_arithmetic(build: Build, tmp_path: Path) -> None:
    """Runtimes can switch the calling thread to flush small numbers to zero, for everything that runs after them."""
    build(tmp_path, toy_denoiser(tmp_path), Streams(1, 1, 4, 1))(*toy_inputs(4))
    assert np.float32(1e-40) * np.float32(1) != 0 and np.float64(5e-324) * np.float64(1) != 0


def test_predictions_do_not_share_memory(build: Build, tmp_path: Path) -> None:
    """Solvers keep the predictions of earlier steps."""
    network = build(tmp_path, toy_denoiser(tmp_path), Streams(1, 1, 8, 1))
    first = network(*toy_inputs(4))
    kept = first.clone()
    network(*toy_inputs(5))
    network(*toy_inputs(4)[:1], *(tensor + 1 for tensor in toy_inputs(4)[1:]))
    assert torch.equal(first, kept)


def test_inputs_may_be_views(build: Build, tmp_path: Path) -> None:
    network = build(tmp_path, toy_denoiser(tmp_path), Streams(2, 1, 8, 1))
    whole = toy_inputs(12)
    views = tuple(tensor[::2] for tensor in whole)
    assert not views[0].is_contiguous()
    assert torch.allclose(network(*views), toy_prediction(*views), atol=1e-4, rtol=1e-5)


def test_a_smaller_batch_is_filled_up_and_one_of_half_the_size_compiled(tmp_path: Path) -> None:
    network = openvino(tmp_path, toy_denoiser(tmp_path), Streams(1, 1, 16, 1))
    for images, sizes in ((4, [4]), (3, [4]), (1, [1, 4]), (2, [1, 2, 4]), (9, [1, 2, 4, 9]), (5, [1, 2, 4, 9])):
        network(*toy_inputs(images))
        assert network.sizes == sizes


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_file_that_is_no_graph_is_refused(build: Build, content: bytes, tmp_path: Path) -> None:
    network = toy_denoiser(tmp_path)
    (tmp_path / network.file).write_bytes(content)
    with pytest.raises(CapabilityError, match=r"cannot run .*denoiser\.onnx") as caught:
        build(tmp_path, network, Streams(1, 1, 4, 1))
    assert "--backend torch" in caught.value.hint


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = toy_denoiser(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CapabilityError, match="openvino is not installed") as caught:
        OvNetwork(tmp_path, network, Streams(1, 1, 4, 1), 4)
    assert "dcdm-cli[openvino]" in caught.value.hint


def test_onnxruntime_without_a_gpu_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CapabilityError, match="CUDAExecutionProvider"):
        OrtNetwork(tmp_path, toy_denoiser(tmp_path), "cuda", Streams(1, 1, 4, 1), spinning=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("calls", [1, 3])
def test_onnxruntime_on_a_gpu_reads_and_writes_torchs_memory(calls: int, tmp_path: Path) -> None:
    network = OrtNetwork(tmp_path, toy_denoiser(tmp_path, calls), "cuda", Streams(1, 1, 4, calls), spinning=True)
    for images in (1, 5):
        inputs = tuple(tensor.cuda() for tensor in toy_inputs(images * calls))
        assert torch.allclose(network(*inputs), toy_prediction(*inputs), atol=1e-4, rtol=1e-5)


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from dcdm_cli.backends.cpu_streams import Streams
from dcdm_cli.backends.ov_backend import OvNetwork
from tests.backends.toys import toy_denoiser

folder = Path(sys.argv[1])
networks = [OvNetwork(folder, toy_denoiser(folder), Streams(1, 1, 4, 1), 4) for _ in range(2)]
while networks:
    del networks[0]
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_after_two_openvino_networks_are_gone_is_handled(tmp_path: Path) -> None:
    """Each OpenVINO core brings a signal stack and puts the last one back, whether that still exists or not."""
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", SIGNALLED, tmp_path], capture_output=True, text=True, env=CHILD)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


OPENMP = """
import os, sys, threading
from pathlib import Path
import torch
from dcdm_cli.backends.cpu_streams import Streams
from dcdm_cli.backends.ort_backend import OrtNetwork
from tests.backends.toys import toy_denoiser, toy_inputs

torch.set_num_threads(2)
folder = Path(sys.argv[1])
network = OrtNetwork(folder, toy_denoiser(folder, 2), "cpu", Streams(2, 1, 5000, 2), spinning=False)
inputs = toy_inputs(20_000)
network(*(tensor[:4] for tensor in inputs)), torch.relu(torch.zeros(10**6))
native = lambda: len(os.listdir("/proc/self/task")) - threading.active_count()  # the pool starts its own when it must
before = native()
network(*inputs)
print(native() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_onnxruntimes_threads_start_none_for_torch(tmp_path: Path) -> None:
    """With more OpenMP threads than cores, all of torch in this process becomes slower for good."""
    done = subprocess.run([sys.executable, "-c", OPENMP, tmp_path], capture_output=True, text=True, env=CHILD)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0
