"""What a classifier sees in images: the activations before its last layer. Images in, one vector per image out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dcdm_cli.difficulty.classifier import Images, Preprocessing, Progress, logits_of
from dcdm_cli.difficulty.features import Penultimate

MOST = 10_000  # images; distances in feature space change little beyond, and cost grows with the square


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
