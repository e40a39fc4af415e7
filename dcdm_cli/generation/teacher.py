"""The guided prediction of a single step, wherever in the schedule: what one call is to learn to give (distillation).

Meng et al. 2022, "On distillation of guided diffusion models", arXiv 2210.03142, stage one; not from the DCDM paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.generation.guidance import Guidance
from dcdm_cli.generation.sampler import Conditioning, of_calls


@dataclass(frozen=True)
class GuidedTeacher:
    """denoiser: takes `calls_of(guidance)` calls at once. timesteps: of the noise schedule. null_text [1, T, D]: of
    the unconditional call."""

    denoiser: Denoiser
    guidance: Guidance
    timesteps: int
    null_text: Tensor

    @torch.no_grad()
    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        """latents [B, 4, h, w], timestep int64 [B], text [B, T, D], label int64 [B], difficulty float32 [B] ->
        prediction float32 [B, 4, h, w]."""
        weights = _weights(self.guidance)
        calls = tuple(weights)
        inputs = of_calls(Conditioning(text, label, difficulty, self.null_text), calls)
        rows, times = latents.repeat(len(calls), 1, 1, 1), timestep.float().repeat(len(calls))
        parts = self.denoiser(rows, times, *inputs).chunk(len(calls))
        guided = torch.stack([part * weight for part, weight in zip(parts, weights.values(), strict=True)]).sum(0)
        inside = self._inside(timestep)[:, None, None, None]
        return torch.where(inside, guided, parts[calls.index("full")])  # a new tensor: autograd takes none of inference

    def _inside(self, timestep: Tensor) -> Tensor:
        """Which rows lie in the guidance interval, bool [B]; as `Guidance.schedule` counts, in steps of one."""
        low, high = self.guidance.interval
        position = 1 - (timestep + 0.5) / self.timesteps
        return (low <= position) & (position <= high)


def calls_of(guidance: Guidance) -> int:
    return len(_weights(guidance))


def _weights(guidance: Guidance) -> dict[str, float]:
    """With the full call, which is all there is outside the interval."""
    return {"full": 0.0} | guidance.weights()
