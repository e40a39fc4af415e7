"""What a classifier sees in images: the activations before its last layer. Images in, one vector per image out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from dcdm_cli.difficulty.classifier import Images, Preprocessing, Progress, logits_of

MOST = 10_000  # images; distances in feature space change little beyond, and cost grows with the square


class Penultimate(nn.Module):
    """A timm classifier without its last layer: float [B, 3, H, W] -> float [B, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.num_classes = model, cast(Any, model).num_features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        model = cast(Any, self.model)
        return model.forward_head(model.forward_features(pixels), pre_logits=True).flatten(1)


def features_of(
    model: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device | str,
    progress: Progress | None = None,
) -> np.ndarray:
    """float32 [N, D] for a timm classifier in eval mode."""
    return logits_of([Penultimate(model).eval()], images, preprocessing, device, progress=progress)[0]


def some(images: Sequence[Any], most: int = MOST) -> list[int]:
    """At most `most` row numbers, spread evenly."""
    return np.unique(np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(int)).tolist()
