"""Noise schedules and samplers: diffusers' own, plus the clipping that keeps small bases from blowing up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from torch import Tensor

from dcdm_cli.model.unipc import LeanUniPC


class Sampler(Protocol):
    """What the denoising loop needs of a diffusers scheduler."""

    config: Mapping[str, Any]
    timesteps: Tensor
    init_noise_sigma: Any
    alphas_cumprod: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None: ...
    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor: ...
    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool = True, **random: Any
    ) -> Any: ...
    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor: ...


class WholeStepEuler(EulerDiscreteScheduler):
    """Takes timesteps as plain integers, which diffusers takes for indexes and refuses."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().step(model_output, torch.tensor(float(timestep)), sample, *args, **kwargs)


SAMPLERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "unipc": LeanUniPC,
    "dpmpp": DPMSolverMultistepScheduler,
    "pndm": PNDMScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
    "euler": WholeStepEuler,
}
# Few-step LoRAs are distilled at timesteps counted back from the last; other spacings miss it, or are no integers.
_SPACING = {"euler": {"timestep_spacing": "trailing"}}


def sampling_scheduler(name: str, base_config: Mapping[str, Any], *, whole: bool = True) -> Sampler:
    """A fresh scheduler with the base model's betas and prediction type. It never clips by itself: see `clip_clean`.

    whole False: only the schedule's tail will be run (`set_schedule`). Then PNDM begins without Runge-Kutta steps,
    which diffusers ties to the noisy end.
    """
    tail = {"skip_prk_steps": True} if not whole and SAMPLERS[name] is PNDMScheduler else {}
    return SAMPLERS[name].from_config(
        {**base_config, "clip_sample": False, "thresholding": False, **tail, **_SPACING.get(name, {})}
    )


def tail_steps(steps: int, strength: float) -> int:
    """How many of a schedule's steps are run from an image at a strength in (0, 1], as diffusers' img2img counts."""
    return min(int(steps * strength), steps)


def set_schedule(scheduler: Sampler, steps: int, strength: float) -> tuple[list[int], int]:
    """Sets a schedule of `steps`. (timesteps of its tail, noisiest first; how many come before them.) Strength 1 is the
    whole of it. The first timestep is the noise level that `noised` gives; strength: `tail_steps` must not be 0.

    As diffusers' img2img does it, but for PNDM, whose tail would there repeat the timestep that the whole schedule
    repeats, and start from another noise level than was added: here the tail repeats its own second timestep.
    """
    scheduler.set_timesteps(steps)
    every = [int(timestep) for timestep in scheduler.timesteps]
    # as the solver has it, with the timestep that PNDM repeats; a tail has to repeat another one
    if strength == 1:
        return every, 0
    count = tail_steps(steps, strength)
    if isinstance(scheduler, PNDMScheduler):
        tail = list(dict.fromkeys(every))[-count:]
        tail = [*tail[:2], *tail[1:]]
        return tail, len(every) - len(tail)
    start = len(every) - count
    if (set_begin := getattr(scheduler, "set_begin_index", None)) is not None:  # multistep solvers look sigmas up by it
        set_begin(start)
    return every[start:], start


def noised(scheduler: Sampler, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Latents [B, 4, h, w] with as much noise as they have at the first timestep of `set_schedule`. On the CPU: DDIM
    would take its schedule along to the latents' device."""
    return scheduler.add_noise(latents.cpu(), noise.cpu(), torch.full((len(latents),), timestep))


def training_scheduler(base_config: Mapping[str, Any]) -> DDPMScheduler:
    scheduler = DDPMScheduler.from_config(dict(base_config))
    assert isinstance(scheduler, DDPMScheduler)
    return scheduler


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """alpha_bar / (1 - alpha_bar) at each timestep, float32 [B]."""
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps]
    return alpha_bar / (1 - alpha_bar)


def clip_clean(noise: Tensor, sample: Tensor, alpha_bar: float, limit: float) -> Tensor:
    """Rewrites a noise prediction so that the clean latents it implies lie in +-limit.

    The same as DDIM's `clip_sample` with `use_clipped_model_output`, for every solver; PNDM extrapolates from several
    predictions and can still leave the range. Not from the paper: a small base under guidance overshoots, and blown-up
    samples look like "difficulty" (docs/architecture.md).
    noise, sample: [B, 4, h, w].
    """
    signal, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    clean = torch.sub(sample, noise, alpha=spread).div_(signal).clamp_(-limit, limit)
    return torch.sub(sample, clean, alpha=signal).div_(spread)


def add_noise(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Any) -> tuple[Tensor, Tensor]:
    """Noisy latents and what the network should predict for them (noise, or velocity), float32 [B, 4, h, w] each."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config["prediction_type"] == "v_prediction":
        return noisy, scheduler.get_velocity(latents, noise, timesteps)
    if scheduler.config["prediction_type"] != "epsilon":
        # no slip of the user's: a base that predicts anything else is refused when it is loaded
        raise ValueError(f"unsupported prediction type {scheduler.config['prediction_type']!r}")
    return noisy, noise


def clip_velocity(velocity: Tensor, sample: Tensor, alpha_bar: float, limit: float) -> Tensor:
    """`clip_clean` for a velocity prediction; needs no division by alpha_bar, which zero-SNR schedules let reach 0."""
    signal, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    clean = (signal * sample).sub_(velocity, alpha=spread).clamp_(-limit, limit)
    return torch.sub(sample, clean, alpha=signal).mul_(signal / spread).sub_(clean, alpha=spread)


def clipped_prediction(prediction: Tensor, sample: Tensor, timestep: int, scheduler: Sampler, limit: float) -> Tensor:
    """`clip_clean` for whatever the scheduler's prediction type is. Looks the schedule up on the CPU."""
    clip = clip_velocity if scheduler.config["prediction_type"] == "v_prediction" else clip_clean
    # the schedule was never moved to a GPU, where reading one number of it would make the process wait
    return clip(prediction, sample, float(scheduler.alphas_cumprod[timestep]), limit)


def noise_streams(seeds: Sequence[int]) -> list[torch.Generator]:
    """One random stream per image, on the CPU: an image is the same whatever its batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise_of(streams: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """The streams' next noise, float32 [len(streams), *shape]."""
    return torch.stack([torch.randn(shape, generator=stream) for stream in streams])
