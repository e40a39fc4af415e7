"""Two-layer networks to export: big enough to have weights and two inputs, small enough for a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Toy(nn.Module):
    """latents [B,4,4,4], timestep [B] -> [B,4]. dtype: of the weights; the edges stay float32."""

    def __init__(self, dtype: torch.dtype = torch.float32, shared_calls: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8 * 16, 4)
        self.dtype, self.shared_calls = dtype, shared_calls
        self.eval().requires_grad_(False).to(dtype)

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        once = latents[: latents.shape[0] // self.shared_calls] if self.shared_calls > 1 else latents
        hidden = torch.relu(self.first(once.to(self.dtype))).flatten(1)
        if self.shared_calls > 1:
            hidden = hidden.repeat(self.shared_calls, 1)
        return self.last(hidden).float() * timestep[:, None] / 500


def toy_inputs(batch: int = 2, shared_calls: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    latents = torch.randn(batch, 4, 4, 4, generator=generator).repeat(shared_calls, 1, 1, 1)
    return {"latents": latents, "timestep": torch.linspace(0, 999, batch).repeat(shared_calls)}
