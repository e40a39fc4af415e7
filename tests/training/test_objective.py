from __future__ import annotations

import pytest
import torch

from dcdm_cli.training.objective import denoising_loss, min_snr_weights

ALPHAS = torch.tensor([0.99, 0.9, 0.5, 0.1])
STEPS = torch.arange(4)
SNR = ALPHAS / (1 - ALPHAS)


def test_min_snr_caps_what_easy_timesteps_weigh() -> None:
    weights = min_snr_weights(ALPHAS, STEPS, 5.0)
    assert torch.allclose(weights, torch.tensor([5 / 99, 5 / 9, 1.0, 1.0]), atol=1e-6)


def test_velocity_is_weighted_by_snr_plus_one() -> None:
    expected = SNR.clamp_max(5) / (SNR + 1)
    assert torch.allclose(min_snr_weights(ALPHAS, STEPS, 5.0, "v_prediction"), expected)


def test_without_gamma_it_is_the_papers_plain_error() -> None:
    prediction, target = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    weights = min_snr_weights(ALPHAS, STEPS, None)
    assert denoising_loss(prediction, target, weights).item() == pytest.approx(
        torch.nn.functional.mse_loss(prediction, target).item(), rel=1e-5
    )


def test_a_weight_of_zero_leaves_an_image_out() -> None:
    prediction, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    loss = denoising_loss(prediction, target, torch.tensor([2.0, 0.0]))
    assert loss.item() == pytest.approx((prediction[0] - target[0]).square().mean().item(), rel=1e-5)


def test_half_precision_is_summed_in_full() -> None:
    big = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    assert denoising_loss(big, torch.zeros_like(big), torch.ones(1)).item() == pytest.approx(90_000)
