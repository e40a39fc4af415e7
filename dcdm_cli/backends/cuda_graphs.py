"""CUDA graphs: a function of tensors is recorded once per set of shapes and then replayed by one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcdm_cli.workers.devices import on_device

MOST_GRAPHS = 4  # each keeps its own activations in memory


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphs:
    """Wraps `function`, which must have fixed weights and no other side effect than its output.

    The first call with new shapes runs as it is, which also warms up the kernels' choices; the second records. Beyond
    `MOST_GRAPHS` sets of shapes, calls run as they are. device: where all of it happens, whichever GPU is current.
    """

    def __init__(self, function: Callable[..., Tensor], device: str = "cuda") -> None:
        self._function, self._device = function, device
        self._seen: set[Any] = set()
        self._recorded: dict[Any, _Recorded] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A new tensor each time: solvers keep predictions over several steps."""
        with on_device(self._device):
            return self._run(inputs)

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        key = tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in inputs)
        if key not in self._seen:
            self._seen.add(key)
            return self._aside(*inputs)
        if key not in self._recorded:
            if len(self._recorded) >= MOST_GRAPHS:
                return self._function(*inputs)
            self._recorded[key] = self._record(inputs)
        recorded = self._recorded[key]
        for static, tensor in zip(recorded.inputs, inputs, strict=True):
            static.copy_(tensor)
        recorded.graph.replay()
        return recorded.output.clone()

    def release(self) -> None:
        """Drops all recordings and the memory they hold."""
        self._seen.clear()
        self._recorded.clear()
        self._pool = None

    def _aside(self, *inputs: Tensor) -> Tensor:
        """On a side stream, as recording demands of the runs before it."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            output = self._function(*inputs)
        current.wait_stream(side)
        # made on the side stream: else its memory could be given away while this one still reads it
        output.record_stream(current)
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()  # shared: recordings never run at the same time
        # a graph reads at the addresses that it was recorded with; `_run` copies inputs there
        static = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._function(*static)
        return _Recorded(graph, static, output)
