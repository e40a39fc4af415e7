"""OpenVINO: the exported ONNX graphs on a CPU, compiled for fixed batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcdm_cli.backends.cpu_streams import Streams, rows_of
from dcdm_cli.backends.exported import empty_output
from dcdm_cli.errors import CapabilityError
from dcdm_export.signature import NetworkFile

MOST_PADDING = 2  # a compiled size serves chunks of more than a half: a batch that was halved is worth its own


@dataclass(frozen=True)
class _Compiled:
    """One request per stream, and the torch views of its inputs and output."""

    requests: list[Any]
    inputs: list[list[Tensor]]
    outputs: list[Tensor]


class OvNetwork:
    """One graph with one output, float32 [rows, ...], computed in float32. Raises CapabilityError when it cannot run.

    Each chunk size is compiled when it first comes up; the last, smaller chunks of a batch or a run are filled up.
    images: the usual batch, compiled for at once.
    """

    def __init__(self, folder: Path, network: NetworkFile, streams: Streams, images: int) -> None:
        self._openvino, self._streams, self._network = import_openvino(), streams, network
        self._core, self._compiled = shared_core(), dict[int, _Compiled]()
        file = folder / network.file
        try:
            self._model = self._core.read_model(file)
            self._for_size(streams.chunk_size(images))
        except RuntimeError as error:
            # the lines before it name OpenVINO's own source files
            reason = str(error).strip().splitlines()[-1]
            raise CapabilityError(f"openvino cannot run {file}: {reason}", "use --backend torch", file=file) from error

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs in the graph's order, the rows of an image `calls` apart."""
        images = len(inputs[0]) // self._streams.calls
        made = empty_output(self._network, len(inputs[0]), "cpu")
        compiled = self._for_size(self._streams.chunk_size(images))
        chunks = list(self._streams.cut(images))
        # in rounds: a stream has one set of buffers, to be read out before they are filled again
        for first in range(0, len(chunks), self._streams.count):
            side_by_side = list(enumerate(chunks[first : first + self._streams.count]))
            for stream, chunk in side_by_side:
                self._start(compiled, stream, inputs, chunk)
            for stream, chunk in side_by_side:
                self._finish(compiled, stream, made, chunk)
        return made

    @property
    def sizes(self) -> list[int]:
        """Chunk sizes, in images, that are compiled."""
        return sorted(self._compiled)

    def _start(self, compiled: _Compiled, stream: int, inputs: tuple[Tensor, ...], chunk: tuple[int, int]) -> None:
        for target, tensor in zip(compiled.inputs[stream], inputs, strict=True):
            rows = rows_of(tensor, self._streams.calls, *chunk)
            target[:, : rows.shape[1]] = rows
        compiled.requests[stream].start_async()

    def _finish(self, compiled: _Compiled, stream: int, made: Tensor, chunk: tuple[int, int]) -> None:
        compiled.requests[stream].wait()
        start, stop = chunk
        # a copy: solvers keep predictions, and the next chunk writes over the request's buffer
        rows_of(made, self._streams.calls, start, stop).copy_(compiled.outputs[stream][:, : stop - start])

    def _for_size(self, size: int) -> _Compiled:
        fitting = [known for known in self._compiled if size <= known < MOST_PADDING * size]
        if fitting:
            return self._compiled[min(fitting)]
        return self._compiled.setdefault(size, self._compile(size))

    def _compile(self, size: int) -> _Compiled:
        streams, rows = self._streams, size * self._streams.calls
        # reshaping changes the model, from which other sizes are still to come
        model = self._model.clone()
        model.reshape({spec.name: [rows, *spec.shape[1:]] for spec in self._network.inputs})
        compiled = self._core.compile_model(model, "CPU", _settings(streams))
        requests = [compiled.create_infer_request() for _ in range(streams.count)]

        def view(tensor: Any) -> Tensor:
            return torch.from_numpy(tensor.data).unflatten(0, (streams.calls, size))

        names = [spec.name for spec in self._network.inputs]
        inputs = [[view(request.get_tensor(name)) for name in names] for request in requests]
        for tensors in inputs:
            for tensor in tensors:
                tensor.zero_()  # rows that are never filled must hold numbers
        return _Compiled(requests, inputs, [view(request.get_output_tensor(0)) for request in requests])


def import_openvino() -> Any:
    """Raises CapabilityError with the extra to install."""
    try:
        import openvino
    except ImportError as error:
        raise CapabilityError("openvino is not installed", "pip install 'dcdm-cli[openvino]'") from error
    return openvino


@cache
def shared_core() -> Any:
    """One for the whole process, never given back: each replaces the thread's signal stack, and when the second of two
    goes it puts back the freed stack of the first, so that the next Ctrl-C would crash the process."""
    return import_openvino().Core()


def _settings(streams: Streams) -> Mapping[str, Any]:
    """Float32 throughout: left to itself OpenVINO takes bfloat16 where the CPU has it. No pinning: others may run."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": streams.count * streams.threads,
        "NUM_STREAMS": streams.count,
        "ENABLE_CPU_PINNING": False,
    }
