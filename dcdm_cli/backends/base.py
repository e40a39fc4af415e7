"""The denoiser contract: all a sampler knows about the network."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """The fused network: encoder and token append are inside it.

    name: for records. device: where the tensors it takes and returns live, as torch names it. shared_calls: 1 = takes
    any rows; k > 1 = takes guided steps of k calls only, whose rows i, i + B, ... of k * B have equal latents and
    timestep. fixed_batch: another number of rows costs it a new compilation, so the last batch is better filled up.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def shared_calls(self) -> int: ...
    @property
    def fixed_batch(self) -> bool: ...

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        """latents float32 [B,4,h,w], timestep float32 [B], text float32 [B,T,D], label int64 [B], difficulty float32
        [B], negative = none given -> prediction float32 [B,4,h,w]."""
        ...
