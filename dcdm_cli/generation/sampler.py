"""The denoising loop over the denoiser contract, with one guidance scale for text and one for difficulty.

eps = e(none, none) + w_text * (e(text, none) - e(none, none)) + w_difficulty * (e(text, s) - e(text, none))

Not from the paper. Equal scales need no text-only call, w_text = 1 no unconditional one: two calls instead of three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.errors import NumericalError
from dcdm_cli.model.conditioning import NULL_DIFFICULTY
from dcdm_cli.model.schedule import Sampler, clipped_prediction


@dataclass(frozen=True)
class Conditioning:
    """text [B, T, D], label int64 [B], difficulty float32 [B]; null_text [1, T, D] is the (negative) empty prompt."""

    text: Tensor
    label: Tensor
    difficulty: Tensor
    null_text: Tensor


@dataclass(frozen=True)
class Guidance:
    text: float = 1.0
    difficulty: float = 1.0

    def weights(self) -> dict[str, float]:
        """Weight of each network call; calls with weight 0 are not made."""
        calls = {"none": 1 - self.text, "text": self.text - self.difficulty, "full": self.difficulty}
        return {name: weight for name, weight in calls.items() if weight != 0}


def sample(
    denoiser: Denoiser,
    scheduler: Sampler,
    noise: Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    *,
    steps: int,
    clip_range: float | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Pure noise float32 [B, 4, h, w] -> clean latents [B, 4, h, w]. Raises NumericalError when they are not finite."""
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    weights = guidance.weights()
    inputs = _stack_calls(conditioning, list(weights))
    for i, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = _guided(denoiser, scaled, timestep, inputs, list(weights.values()))
        if clip_range is not None:
            prediction = clipped_prediction(prediction, scaled, timestep, scheduler, clip_range)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(i + 1)
    if not torch.isfinite(latents).all():
        raise NumericalError(
            "the sampler produced NaN or infinite latents",
            "lower --text-guidance and --difficulty-guidance, set generate.clip_range, or use --precision fp32",
        )
    return latents


def _stack_calls(conditioning: Conditioning, calls: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """text, label, difficulty of all calls in one batch: [calls * B, ...]."""
    null_text = conditioning.null_text.expand_as(conditioning.text)
    null_difficulty = torch.full_like(conditioning.difficulty, NULL_DIFFICULTY)
    text = torch.cat([null_text if call == "none" else conditioning.text for call in calls])
    difficulty = torch.cat([conditioning.difficulty if call == "full" else null_difficulty for call in calls])
    return text, conditioning.label.repeat(len(calls)), difficulty


def _guided(
    denoiser: Denoiser, latents: Tensor, timestep: Tensor, inputs: tuple[Tensor, Tensor, Tensor], weights: list[float]
) -> Tensor:
    count = len(weights) * len(latents)
    predictions = denoiser(latents.repeat(len(weights), 1, 1, 1), timestep.expand(count), *inputs)
    parts = predictions.chunk(len(weights))
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)
