"""diffusers' UniPC without its five blocking copies per step.

An update is a sum of the sample and of a few predictions, each times a number that the schedule alone decides. On a GPU
diffusers works these numbers out there: each step copies the schedule over and solves a system of two equations, and
the process waits for both. Here they come from the CPU, by diffusers' own code on unit vectors, and the device sees one
sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor


class LeanUniPC(UniPCMultistepScheduler):
    """The same samples up to rounding."""

    def multistep_uni_p_bh_update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_output: Tensor, *, sample: Tensor, order: int, **_: Any
    ) -> Tensor:
        step = super().multistep_uni_p_bh_update

        def update(sample: Tensor, *history: Tensor) -> Tensor:
            return step(history[0], sample=sample, order=order)

        return self._summed([sample, *self._history(order)], order, update)

    def multistep_uni_c_bh_update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, this_model_output: Tensor, *, last_sample: Tensor, this_sample: Tensor, order: int, **_: Any
    ) -> Tensor:
        step = super().multistep_uni_c_bh_update

        def update(last: Tensor, *parts: Tensor) -> Tensor:
            # this_sample lends only its device there: what is corrected starts from the last sample
            return step(parts[-1], last_sample=last, this_sample=last, order=order)

        return self._summed([last_sample, *self._history(order), this_model_output], order, update)

    def _history(self, order: int) -> list[Tensor]:
        """The last predictions, newest first."""
        return self.model_outputs[-order:][::-1]

    def _summed(self, parts: Sequence[Tensor], order: int, update: Callable[..., Tensor]) -> Tensor:
        """The update's sum. parts: the sample, the last `order` predictions, newest first, and perhaps the new one."""
        # a sum's weights are what it makes of unit vectors
        units = torch.eye(len(parts), dtype=torch.float64).split(1)
        known = self.model_outputs
        # diffusers keeps its history oldest first
        self.model_outputs = list(units[order:0:-1])
        try:
            weights = update(*units)[0].tolist()
        finally:
            self.model_outputs = known
        total = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total.add_(part, alpha=weight)
        return total
