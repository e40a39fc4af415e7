"""ONNX Runtime: exported graphs on a CPU or a CUDA GPU, reading and writing torch's memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from dcdm_cli.backends.cpu_streams import Streams, rows_of
from dcdm_cli.backends.exported import empty_output
from dcdm_cli.backends.ort_graph import for_cpu
from dcdm_cli.errors import CapabilityError
from dcdm_cli.workers.devices import split_name
from dcdm_export.parity import optimization_level
from dcdm_export.signature import NetworkFile

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class _Bound:
    """inputs: what the binding reads, which must live until it has run. output: where it writes; target: the rows of
    the result, the same memory where they lie together."""

    binding: Any
    inputs: list[Tensor]
    output: Tensor
    target: Tensor


class OrtNetwork:
    """One graph with one output, float32 [rows, ...]. Raises CapabilityError when this machine cannot run it."""

    def __init__(self, folder: Path, network: NetworkFile, device: str, streams: Streams, *, spinning: bool) -> None:
        self._device, self._streams, self._network = device, streams, network
        self._number = _number(device)
        self._session = _open_session(folder, network, device, streams, spinning)
        self._pool = ThreadPoolExecutor(streams.count) if streams.count > 1 else None

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs in the graph's order, the rows of an image `calls` apart."""
        images = len(inputs[0]) // self._streams.calls
        # new each time: solvers keep the predictions of earlier steps
        made = empty_output(self._network, len(inputs[0]), self._device)
        # chunks are cut for a CPU's caches
        chunks = [(0, images)] if self._device != "cpu" else list(self._streams.cut(images))
        bound = [self._bound(inputs, made, *chunk) for chunk in chunks]
        if self._device != "cpu":
            torch.cuda.current_stream(self._device).synchronize()  # the session has a stream of its own
        # The threads run the session and nothing of torch: an operation of torch would start OpenMP threads for each,
        # and with more of them than cores all of torch waits asleep instead of spinning, 2.4 times slower (measured).
        run = map if self._pool is None or len(chunks) == 1 else self._pool.map
        list(run(self._session.run_with_iobinding, [chunk.binding for chunk in bound]))
        for chunk in bound:
            if chunk.output is not chunk.target:
                chunk.target.copy_(chunk.output)
        return made

    def _bound(self, inputs: tuple[Tensor, ...], made: Tensor, start: int, stop: int) -> _Bound:
        """One chunk. Rows that lie together are read and written where they are."""
        calls = self._streams.calls
        binding = self._session.io_binding()
        held: list[Tensor] = []
        for spec, tensor in zip(self._network.inputs, inputs, strict=True):
            rows = rows_of(tensor.to(self._device, _TORCH_TYPES[spec.dtype]), calls, start, stop).flatten(0, 1)
            held.append(rows.contiguous())
            self._bind(binding.bind_input, spec.name, spec.dtype, held[-1])
        target = rows_of(made, calls, start, stop)
        output = target if target.is_contiguous() else torch.empty_like(target, memory_format=torch.contiguous_format)
        self._bind(binding.bind_output, self._network.outputs[0].name, "float32", output.flatten(0, 1))
        return _Bound(binding, held, output, target)

    def _bind(self, bind: Any, name: str, dtype: str, tensor: Tensor) -> None:
        kind, _, _ = self._device.partition(":")
        bind(name, kind, self._number, np.dtype(dtype), tuple(tensor.shape), tensor.data_ptr())


_TORCH_TYPES = {"float32": torch.float32, "int64": torch.int64}


def _open_session(
    folder: Path, network: NetworkFile, device: str, streams: Streams, spinning: bool
) -> onnxruntime.InferenceSession:
    file, options = folder / network.file, onnxruntime.SessionOptions()
    options.graph_optimization_level = optimization_level(network.precision)
    options.intra_op_num_threads, options.inter_op_num_threads = streams.threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        graph = for_cpu(file) if device == "cpu" else file
        session = onnxruntime.InferenceSession(graph, options, providers=_providers(device))
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        reason = str(error).strip().splitlines()[0]
        raise CapabilityError(f"onnxruntime cannot run {file}: {reason}", "use --backend torch", file=file) from error
    # without the CUDA libraries it takes the CPU by itself, and raises nothing
    wanted = CPU if device == "cpu" else CUDA
    if session.get_providers()[0] != wanted:
        raise CapabilityError(f"onnxruntime has no {wanted} here", "use --backend torch, or --device cpu")
    return session


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return [CPU]
    onnxruntime.preload_dlls()  # the CUDA libraries that torch brings
    # no TF32: exports were compared without it too (`dcdm_export/parity.py`)
    return [(CUDA, {"device_id": _number(device), "use_tf32": 0, "cudnn_conv_algo_search": "EXHAUSTIVE"}), CPU]


def _number(device: str) -> int:
    """ONNX Runtime takes its GPU by number: `cuda` alone is the current one, as in torch."""
    kind, number = split_name(device)
    if number is not None:
        return number
    return torch.cuda.current_device() if kind == "cuda" and torch.cuda.is_available() else 0
