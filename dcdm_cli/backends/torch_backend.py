"""The reference backend: the fused PyTorch module as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from dcdm_cli.model.denoiser import ConditionedUNet


class TorchDenoiser:
    """Runs a ConditionedUNet in its own dtype; inputs and output are float32."""

    name = "torch"

    def __init__(self, network: ConditionedUNet, device: str) -> None:
        self.device = device
        self._network = network.to(device).eval().requires_grad_(False)
        self._dtype = network.unet.dtype

    @torch.inference_mode()
    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        latents, text = latents.to(self._dtype), text.to(self._dtype)
        return self._network(latents, timestep, text, label, difficulty).float()
