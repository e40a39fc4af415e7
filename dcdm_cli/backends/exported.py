"""An exported network behind the denoiser contract, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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


def empty_output(network: NetworkFile, rows: int, device: str) -> Tensor:
    """Memory for what the network gives for so many rows: float32 [rows, ...]."""
    return torch.empty((rows, *(int(axis) for axis in network.outputs[0].shape[1:])), device=device)
