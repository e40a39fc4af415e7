"""The denoising loop over the denoiser contract: all calls of a guided step go through the network as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.errors import NumericalError
from dcdm_cli.generation.guidance import Guidance
from dcdm_cli.model.conditioning import NULL_DIFFICULTY
from dcdm_cli.model.schedule import Sampler, clipped_prediction, noised, set_schedule


@dataclass(frozen=True)
class Start:
    """latents float32 [B, 4, h, w], on the CPU: clean ones of real images. strength in (0, 1): the share of the
    schedule that is run from them."""

    latents: Tensor
    strength: float


@dataclass(frozen=True)
class Conditioning:
    """text [B, T, D], label int64 [B], difficulty float32 [B]; null_text [1, T, D] is the (negative) empty prompt.
    start: what the images begin from besides noise; None = nothing. streams: one per image, for samplers that add noise
    at every step; None for the others."""

    text: Tensor
    label: Tensor
    difficulty: Tensor
    null_text: Tensor
    start: Start | None = None
    streams: Sequence[torch.Generator] | None = None


@torch.inference_mode()
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
    """Pure noise float32 [B, 4, h, w] -> clean latents [B, 4, h, w] on the conditioning's device. Raises NumericalError
    when they are not finite.

    With a start, noise is added to it and only the schedule's tail is run (img2img: SDEdit, Meng et al. 2021, arXiv
    2108.01073). The schedule stays on the CPU, where schedulers look things up, so that no step waits for the device.
    """
    start, device = conditioning.start, conditioning.text.device
    timesteps, before = set_schedule(scheduler, steps, start.strength if start else 1.0)
    # the guided interval is one of the whole schedule, of which this may be the tail
    requested = conditioning.difficulty.clamp(0, 1).view(-1, 1, 1, 1)
    weights = guidance.schedule(before + len(timesteps), requested)[before:]
    batches = {tuple(calls): _Batch(denoiser, conditioning, tuple(calls), timesteps) for calls in weights}
    if start is None:
        latents = noise.to(device) * scheduler.init_noise_sigma
    else:
        latents = noised(scheduler, start.latents, noise, timesteps[0]).to(device)
    fresh = {} if conditioning.streams is None else {"generator": list(conditioning.streams)}
    for i, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = batches[tuple(weights[i])].predict(scaled, i, list(weights[i].values()))
        # by `scaled`: the noise levels of alphas_cumprod are those of what the network is shown
        if clip_range is not None:
            prediction = clipped_prediction(prediction, scaled, timestep, scheduler, clip_range)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **fresh)[0]
        if on_step is not None:
            on_step(i + 1)
    if not torch.isfinite(latents).all():  # once, at the end: a look after each step would make a GPU wait
        raise NumericalError(
            "the sampler produced NaN or infinite latents",
            "lower --text-guidance and --difficulty-guidance, set generate.clip_range, or use --precision fp32",
        )
    return latents


def of_calls(conditioning: Conditioning, calls: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """What a denoiser is told of all calls of a step in one batch: text, label and difficulty [calls * B, ...]."""
    null_text = conditioning.null_text.expand_as(conditioning.text)
    null_difficulty = torch.full_like(conditioning.difficulty, NULL_DIFFICULTY)
    text = torch.cat([null_text if call == "none" else conditioning.text for call in calls])
    difficulty = torch.cat([conditioning.difficulty if call == "full" else null_difficulty for call in calls])
    return text, conditioning.label.repeat(len(calls)), difficulty


class _Batch:
    """What stays the same over the steps that make the same calls: text, label and difficulty [calls * B, ...]."""

    def __init__(
        self, denoiser: Denoiser, conditioning: Conditioning, calls: tuple[str, ...], timesteps: Sequence[int]
    ) -> None:
        assert denoiser.shared_calls in (1, len(calls)), "open_engine picks a network that fits the guidance"
        self._denoiser, self._calls = denoiser, len(calls)
        self._inputs = of_calls(conditioning, calls)
        # of all steps at once: a copy in each would have it wait for the device
        times = torch.tensor(timesteps, dtype=torch.float32, device=conditioning.text.device)
        self._times = times[:, None].repeat(1, len(self._inputs[0]))

    def predict(self, latents: Tensor, step: int, weights: Sequence[float | Tensor]) -> Tensor:
        """The guided prediction [B, 4, h, w]: the weighted sum of the calls. weights: numbers, or [B, 1, 1, 1]."""
        rows = latents if self._calls == 1 else latents.repeat(self._calls, 1, 1, 1)
        parts = self._denoiser(rows, self._times[step], *self._inputs).chunk(self._calls)
        if self._calls == 1:
            return parts[0]
        total = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            if isinstance(weight, Tensor):
                total = total + part * weight
            else:
                total.add_(part, alpha=weight)
        return total
