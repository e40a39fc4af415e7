"""In what images are compared: frozen features of the packaged network or another one, or the judge's. Images in, one
vector per image out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import Images, OnTrunk, Preprocessing, logits_of
from dcdm_cli.difficulty.feature_cache import FeatureCache
from dcdm_cli.difficulty.features import Penultimate, open_extractor
from dcdm_cli.run.progress import Job, Progress

MOST = 10_000  # images; distances in feature space change little beyond, and cost grows with the square
JUDGE = "judge"


@dataclass(frozen=True)
class Space:
    """name: for tables: figures of different spaces are not to be compared. of: float32 [N, D] of a manifest's rows.
    seen: the same of images that no manifest lists, uint8 [N, H, W, 3] or paths; nothing is kept of them."""

    name: str
    of: Callable[[Manifest], np.ndarray]
    seen: Callable[[Images], np.ndarray]


def frozen_space(features: str, cache: FeatureCache, job: Job) -> Space:
    """features: as `difficulty.features.open_extractor` takes it. Each image is looked at once per run.

    Raises what opening and looking raise.
    """
    extractor = open_extractor(features, None, job.device)

    def of(images: Manifest) -> np.ndarray:
        return cache.of(extractor, images, job).take(np.arange(len(images)))

    def seen(images: Images) -> np.ndarray:
        return logits_of([extractor.network], images, extractor.preprocessing, job.device)[0]

    return Space(str(extractor), of, seen)


def model_space(name: str, model: nn.Module, preprocessing: Preprocessing, device: torch.device | str) -> Space:
    """The space of a classifier of these very classes, such as the judge's."""

    def seen(images: Images) -> np.ndarray:
        return features_of(model, images, preprocessing, device)

    return Space(name, lambda images: seen(images.paths()), seen)


def features_of(
    model: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device | str,
    progress: Progress | None = None,
) -> np.ndarray:
    """float32 [N, D] for a timm classifier in eval mode, or for one that rests on features: those."""
    seen = model.trunk if isinstance(model, OnTrunk) else Penultimate(model).eval()
    return logits_of([seen], images, preprocessing, device, progress=progress)[0]
