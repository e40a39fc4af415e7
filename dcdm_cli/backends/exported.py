"""An exported network behind the denoiser contract, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dcdm_cli.backends.base import Denoiser
from dcdm_export.signature import NetworkFile


@dataclass(frozen=True)
class ExportedDenoiser:
    """network: the five inputs of the contract -> prediction, for any number of rows that `shared_calls` divides."""

    network: Callable[..., Tensor]
    name: str
    device: str
    shared_calls: int = 1
    fixed_batch: bool = False

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        return self.network(latents, timestep, text, label, difficulty)


@contextmanager
def cores_left_to(denoiser: Denoiser) -> Iterator[None]:
    """Around denoising and decoding: torch keeps to one thread where exported networks have the CPU's cores.

    Whatever torch shares among its threads, copies of more than 32,768 values among them, leaves them spinning for a
    while on the cores that the network runs on next: a step of 64 rows took a third longer (measured, OpenVINO).
    """
    if not isinstance(denoiser, ExportedDenoiser) or denoiser.device != "cpu":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def empty_output(network: NetworkFile, rows: int, device: str) -> Tensor:
    """Memory for what the network gives for so many rows: float32 [rows, ...]."""
    return torch.empty((rows, *(int(axis) for axis in network.outputs[0].shape[1:])), device=device)
