"""A machine with several GPUs, imitated: which one is current, and on which one each thing happened.

Tensors stay on the CPU; what torch.cuda would do with a device is noted. Imported by a spawned worker with
`DCDM_FAKE_GPUS` set, it takes torch.cuda's place there, before the worker's own code runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class FakeCuda:
    """events: (what, number of the GPU it happened on)."""

    def __init__(self, count: int) -> None:
        self.count, self.current = count, 0
        self.events: list[tuple[str, int]] = []

    def number(self, device: Any = None) -> int:
        if isinstance(device, int):
            return device
        index = torch.device(device).index if device is not None else None
        return self.current if index is None else index

    def note(self, what: str, device: Any = None) -> None:
        self.events.append((what, self.number(device)))

    def set_device(self, device: Any) -> None:
        assert self.number(device) < self.count
        self.current = self.number(device)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current
        self.set_device(device)
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        with self.device(stream.device):
            yield

    @contextmanager
    def graph(self, graph: FakeGraph, **_: Any) -> Iterator[None]:
        graph.number = self.current
        self.note("capture")
        yield

    def names(self) -> dict[str, Any]:
        return {
            "is_available": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "set_device": self.set_device,
            "device": self.device,
            "stream": self.stream,
            "graph": self.graph,
            "graph_pool_handle": lambda: None,
            "CUDAGraph": lambda: FakeGraph(self),
            "Stream": lambda device=None: FakeStream(self, self.number(device)),
            "current_stream": lambda device=None: FakeStream(self, self.number(device)),
        }


class FakeStream:
    cuda_stream = 0

    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self.cuda, self.device = cuda, torch.device("cuda", number)

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.note("wait", self.device)

    def synchronize(self) -> None:
        self.cuda.note("synchronize", self.device)


class FakeGraph:
    """A replay changes nothing: the tensors of a recording are on the CPU and hold what they did."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.number = cuda, -1

    def replay(self) -> None:
        assert self.number == self.cuda.current
        self.cuda.note("replay")


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> FakeCuda:
    fake = FakeCuda(count)
    for name, value in fake.names().items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    return fake


if "DCDM_FAKE_GPUS" in os.environ:
    for _name, _value in FakeCuda(int(os.environ["DCDM_FAKE_GPUS"])).names().items():
        setattr(torch.cuda, _name, _value)
