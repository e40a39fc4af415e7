"""Schedulers with the base's betas, and clipping that means the same for every solver and prediction type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.schedule import (
    SAMPLERS,
    add_noise,
    clip_velocity,
    clipped_prediction,
    noise_of,
    noise_streams,
    noised,
    sampling_scheduler,
    set_schedule,
    signal_to_noise,
    tail_steps,
    training_scheduler,
)

CLEAN, NOISE = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)


def config(tiny: BaseModel, kind: str = "epsilon") -> dict[str, Any]:
    return {**tiny.scheduler_config, "prediction_type": kind}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_perfect_network_leads_every_solver_to_the_clean_image(tiny: BaseModel, name: str, kind: str) -> None:
    scheduler = sampling_scheduler(name, config(tiny, kind))
    scheduler.set_timesteps(30)
    start = int(scheduler.timesteps[0])
    alpha_bar = scheduler.alphas_cumprod[start]
    latents = alpha_bar.sqrt() * CLEAN + (1 - alpha_bar).sqrt() * NOISE
    for timestep in scheduler.timesteps:
        a = scheduler.alphas_cumprod[int(timestep)]
        noise = (latents - a.sqrt() * CLEAN) / (1 - a).sqrt()
        perfect = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * CLEAN
        latents = scheduler.step(perfect, timestep, latents, return_dict=False)[0]
    assert (latents - CLEAN).abs().max() < 0.15


def test_no_solver_clips_by_itself(tiny: BaseModel) -> None:
    clipping = {**tiny.scheduler_config, "clip_sample": True, "thresholding": True}
    for name in SAMPLERS:
        made = sampling_scheduler(name, clipping)
        assert not made.config.get("clip_sample") and not made.config.get("thresholding")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_training_targets_undo_the_noise(tiny: BaseModel, kind: str) -> None:
    scheduler = training_scheduler(config(tiny, kind))
    timesteps = torch.tensor([10, 900])
    noisy, target = add_noise(scheduler, CLEAN, NOISE, timesteps)
    a = scheduler.alphas_cumprod[timesteps].view(2, 1, 1, 1)
    assert torch.allclose(noisy, a.sqrt() * CLEAN + (1 - a).sqrt() * NOISE, atol=1e-6)
    expected = NOISE if kind == "epsilon" else a.sqrt() * NOISE - (1 - a).sqrt() * CLEAN
    assert torch.allclose(target, expected, atol=1e-6)


def test_another_prediction_type_is_refused(tiny: BaseModel) -> None:
    with pytest.raises(ValueError, match="'sample'"):
        add_noise(training_scheduler(config(tiny, "sample")), CLEAN, NOISE, torch.tensor([10, 900]))


def test_signal_to_noise_falls_with_time(tiny: BaseModel) -> None:
    snr = signal_to_noise(training_scheduler(tiny.scheduler_config).alphas_cumprod, torch.tensor([0, 500, 999]))
    assert snr[0] > 100 > snr[1] > snr[2] > 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_clipping_limits_the_clean_latents_and_nothing_else(tiny: BaseModel, kind: str) -> None:
    scheduler = sampling_scheduler("ddim", config(tiny, kind))
    a = scheduler.alphas_cumprod[600]
    clean = 5 * CLEAN
    sample = a.sqrt() * clean + (1 - a).sqrt() * NOISE
    prediction = NOISE if kind == "epsilon" else a.sqrt() * NOISE - (1 - a).sqrt() * clean
    clipped = clipped_prediction(prediction, sample, 600, scheduler, 4.0)
    implied = scheduler.step(clipped, 600, sample).pred_original_sample if scheduler.set_timesteps(10) is None else None
    assert implied is not None
    assert torch.allclose(implied, clean.clamp(-4, 4), atol=1e-4)
    unclipped = clipped_prediction(prediction, sample, 600, scheduler, 100.0)
    assert torch.allclose(unclipped, prediction, atol=1e-4)


def test_clipping_equals_the_librarys_own(tiny: BaseModel) -> None:
    theirs = DDIMScheduler.from_config({**tiny.scheduler_config, "clip_sample": True, "clip_sample_range": 1.5})
    ours = sampling_scheduler("ddim", tiny.scheduler_config)
    prediction, sample = 3 * NOISE, CLEAN
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    timestep = int(ours.timesteps[4])
    expected = theirs.step(prediction, timestep, sample, use_clipped_model_output=True, return_dict=False)[0]
    clipped = clipped_prediction(prediction, sample, timestep, ours, 1.5)
    assert torch.allclose(ours.step(clipped, timestep, sample, return_dict=False)[0], expected, atol=1e-5)


def test_velocity_is_clipped_even_without_any_signal_left() -> None:
    made = clip_velocity(9 * CLEAN, NOISE, 0.0, 4.0)
    assert torch.isfinite(made).all()
    assert torch.allclose(made, (9 * CLEAN).clamp(-4, 4), atol=1e-5)


def test_an_images_noise_does_not_depend_on_its_batch() -> None:
    together = noise_of(noise_streams([3, 1, 2]), (4, 8, 8))
    assert together.dtype == torch.float32 and together.shape == (3, 4, 8, 8)
    assert torch.equal(together[1], noise_of(noise_streams([1]), (4, 8, 8))[0])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_tail_leads_from_a_noised_image_back_to_it(tiny: BaseModel, name: str, kind: str, spacing: str) -> None:
    for strength, steps in ((0.04, 1), (0.2, 6), (0.75, 22)):
        scheduler = sampling_scheduler(name, {**config(tiny, kind), "timestep_spacing": spacing}, whole=False)
        timesteps, before = set_schedule(scheduler, 30, strength)
        assert len(set(timesteps)) == steps == tail_steps(30, strength) and before >= 30 - steps
        a = scheduler.alphas_cumprod[timesteps[0]]
        latents = noised(scheduler, CLEAN, NOISE, timesteps[0])
        seen = scheduler.scale_model_input(latents, timesteps[0])  # Euler keeps latents at another scale
        assert torch.allclose(seen, a.sqrt() * CLEAN + (1 - a).sqrt() * NOISE, atol=1e-5)  # the level it begins at
        for timestep in timesteps:
            a = scheduler.alphas_cumprod[timestep]
            noise = (latents - a.sqrt() * CLEAN) / (1 - a).sqrt()
            perfect = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * CLEAN
            latents = scheduler.step(perfect, timestep, latents, return_dict=False)[0]
        assert (latents - CLEAN).abs().max() < 0.15


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_whole_schedule_is_the_solvers_own(tiny: BaseModel, name: str) -> None:
    ours, theirs = (sampling_scheduler(name, tiny.scheduler_config) for _ in range(2))
    theirs.set_timesteps(20)
    assert set_schedule(ours, 20, 1.0) == (theirs.timesteps.tolist(), 0)
