"""Guidance: the formula, the calls it saves, and what happens when it blows up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcdm_cli.errors import NumericalError
from dcdm_cli.generation.guidance import Guidance
from dcdm_cli.generation.sampler import Conditioning, sample
from dcdm_cli.model.base import load_base
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.model.schedule import Sampler, sampling_scheduler

TEXT, NULL = torch.full((2, 3, 4), 10.0), torch.zeros(1, 3, 4)
CONDITIONING = Conditioning(TEXT, torch.tensor([0, 1]), torch.tensor([0.25, 0.75]), NULL)


class Arithmetic:
    """A denoiser whose prediction says which call it was: text + difficulty, -1 for none given."""

    name, device, shared_calls, fixed_batch = "arithmetic", "cpu", 1, False

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        assert len(latents) == len(timestep) == len(text) == len(label) == len(difficulty)
        self.batches.append(len(latents))
        return (text[:, 0, 0] + difficulty)[:, None, None, None].expand_as(latents).clone()


class Recorder:
    """A scheduler of one step that keeps the guided prediction."""

    config: dict[str, str] = {"prediction_type": "epsilon"}  # noqa: RUF012
    init_noise_sigma = 1.0
    alphas_cumprod = torch.linspace(0.99, 0.01, 1000)

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        self.timesteps = torch.arange(num_inference_steps).flip(0) * 10

    def scale_model_input(self, sample: Tensor, timestep: object) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: object, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (model_output,)


@pytest.mark.parametrize(
    ("text", "difficulty", "calls"), [(1, 1, 1), (2, 2, 2), (1, 3, 2), (2, 6, 3), (2, 0, 2), (1, 0, 1)]
)
def test_the_formula_and_the_calls_it_needs(text: float, difficulty: float, calls: int) -> None:
    denoiser = Arithmetic()
    made = sample(denoiser, Recorder(), torch.randn(2, 4, 8, 8), CONDITIONING, Guidance(text, difficulty), steps=1)  # type: ignore[arg-type]
    none, words, full = 0 - 1, 10 - 1, torch.tensor([10.25, 10.75])
    expected = none + text * (words - none) + difficulty * (full - words)
    assert torch.allclose(made[:, 0, 0, 0], expected)
    assert denoiser.batches == [2 * calls]


@pytest.mark.parametrize(("difficulty", "calls"), [(2.0, 2), (6.0, 3)])
def test_with_a_span_each_image_has_the_scale_of_its_request(difficulty: float, calls: int) -> None:
    denoiser, guidance = Arithmetic(), Guidance(2.0, difficulty, span=(9.0, 1.0))
    made = sample(denoiser, Recorder(), torch.randn(2, 4, 8, 8), CONDITIONING, guidance, steps=1)  # type: ignore[arg-type]
    for image, text in enumerate((7.0, 3.0)):  # requests of 0.25 and 0.75
        own = Guidance(text, text if calls == 2 else difficulty)
        alone = sample(Arithmetic(), Recorder(), torch.randn(2, 4, 8, 8), CONDITIONING, own, steps=1)  # type: ignore[arg-type]
        assert torch.allclose(made[image], alone[image], atol=1e-4)
    assert denoiser.batches == [2 * calls]


def scheduler(name: str = "ddim") -> Sampler:
    return sampling_scheduler(name, load_base(TINY_NAME).scheduler_config)


class Exploding(Arithmetic):
    def __call__(self, latents: Tensor, *inputs: Tensor) -> Tensor:
        return 100 * latents


@pytest.mark.parametrize("name", ["ddim", "dpmpp", "unipc"])
def test_clipping_keeps_solvers_in_range(name: str) -> None:
    noise = torch.randn(2, 4, 8, 8)
    made = sample(Exploding(), scheduler(name), noise, CONDITIONING, Guidance(), steps=10, clip_range=4.0)
    assert made.abs().max() <= 4.6  # the last step's own noise comes on top


def test_without_clipping_a_blow_up_is_an_error_not_an_image() -> None:
    with pytest.raises(NumericalError, match="NaN or infinite") as caught:
        sample(Exploding(), scheduler(), torch.randn(2, 4, 8, 8) * 1e30, CONDITIONING, Guidance(), steps=10)
    assert "clip_range" in caught.value.hint


def test_every_step_is_reported() -> None:
    seen: list[int] = []
    sample(Arithmetic(), Recorder(), torch.randn(2, 4, 8, 8), CONDITIONING, Guidance(), steps=3, on_step=seen.append)  # type: ignore[arg-type]
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("interval", "batches"), [((0, 1), [6] * 4), ((0.25, 0.75), [2, 6, 6, 2]), ((0.6, 1), [2, 2, 6, 6])]
)
def test_outside_the_interval_only_the_conditional_call_is_made(
    interval: tuple[float, float], batches: list[int]
) -> None:
    denoiser = Arithmetic()
    guidance = Guidance(2, 6, interval)
    made = sample(denoiser, Recorder(), torch.randn(2, 4, 8, 8), CONDITIONING, guidance, steps=4)  # type: ignore[arg-type]
    assert denoiser.batches == batches
    if batches[-1] == 2:
        assert torch.allclose(made[:, 0, 0, 0], torch.tensor([10.25, 10.75]))  # text and difficulty, weight 1
    assert guidance.shared_calls(4) == (3 if interval == (0, 1) else 1)


def test_a_network_for_another_number_of_calls_is_never_used() -> None:
    denoiser = Arithmetic()
    denoiser.shared_calls = 3
    noise = torch.randn(2, 4, 8, 8)
    sample(denoiser, Recorder(), noise, CONDITIONING, Guidance(2, 6), steps=1)  # type: ignore[arg-type]
    for guidance in (Guidance(), Guidance(2, 2), Guidance(2, 6, (0, 0.5))):
        with pytest.raises(AssertionError):
            sample(denoiser, Recorder(), noise, CONDITIONING, guidance, steps=2)  # type: ignore[arg-type]
