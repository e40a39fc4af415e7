"""The noise-prediction loss (paper) with Min-SNR weighting as a setting (Hang et al. 2023; not from the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from dcdm_cli.model.schedule import signal_to_noise


def min_snr_weights(
    alphas_cumprod: Tensor, timesteps: Tensor, gamma: float | None, prediction_type: str = "epsilon"
) -> Tensor:
    """min(SNR, gamma) / SNR for noise prediction, / (SNR + 1) for velocity; ones when gamma is None. float32 [B]."""
    if gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = signal_to_noise(alphas_cumprod, timesteps)
    return snr.clamp_max(gamma) / (snr + 1 if prediction_type == "v_prediction" else snr)


def denoising_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean squared error over the batch. prediction, target [B, 4, h, w]; weights [B] -> scalar."""
    # in half precision squares overflow or vanish
    per_image = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return (per_image * weights).mean()
