"""A worker on an imitated GPU that says which one is current. In a module of its own: importing it imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .. import fake_cuda

__all__ = ["fake_cuda"]


class GpuWorker:
    def __init__(self, device: str) -> None:
        self.hello = (device, torch.cuda.current_device())

    def run(self, task: int) -> Iterator[tuple[int, int]]:
        yield task, torch.cuda.current_device()


def open_on_gpu(device: str, should_stop: Callable[[], bool]) -> GpuWorker:
    return GpuWorker(device)
