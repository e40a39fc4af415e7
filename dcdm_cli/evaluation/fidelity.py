"""How like real images the generated ones are, and how much of the real variety they cover, in a feature space.

Fréchet distance, kernel distance (KID) and precision / recall are torch-fidelity's, on given features; density and
coverage (Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020) are not in it and
follow the paper's equations. The features are frozen ones of a network that knows nothing of these classes, so that
figures of different data sets can be compared, or the judge's. Inception's are added where its weights lie in the hub's
cache. Not from the DCDM paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from dcdm_cli.difficulty.classifier import Preprocessing

NEIGHBOURS = 5  # k of density and coverage, and of precision and recall
CHUNK = 2048  # rows of a distance table held at once
KID_SUBSETS, KID_SIZE = 50, 500
INCEPTION = "inception_v3.tf_in1k"


def fidelity(generated: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """generated, reference: float [N, D] and [M, D] features of images; reference are real ones.

    frechet and kid: 0 = the same distribution, kid in thousandths; both fall with more images: compare equal numbers.
    precision, density: are generated images where real ones are? recall, coverage: are real images near generated ones?
    Everything is None with fewer than NEIGHBOURS + 2 images on either side.
    """
    names = ("frechet", "kid", "precision", "recall", "density", "coverage")
    counts = {"generated": len(generated), "reference": len(reference)}
    if min(len(generated), len(reference)) < NEIGHBOURS + 2:
        return {**dict.fromkeys(names), **counts}
    made, real = (torch.from_numpy(np.asarray(part, np.float64)) for part in (generated, reference))
    precision, recall = _precision_recall(made, real)
    density, coverage = density_coverage(made, real)
    values = (frechet(made, real), _kid(made, real), precision, recall, density, coverage)
    return {**{name: round(float(value), 4) for name, value in zip(names, values, strict=True)}, **counts}


def frechet(made: torch.Tensor, real: torch.Tensor) -> float:
    """Between Gaussians fitted to the two sets of features, float64 [N, D] and [M, D]; never below 0."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    fitted = [fid_features_to_statistics(part) for part in (made, real)]
    # a matrix root's rounding can end below 0
    return max(0.0, fid_statistics_to_metric(*fitted, verbose=False)[KEY_METRIC_FID])


def density_coverage(made: torch.Tensor, real: torch.Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Naeem et al. 2020, equations 6 and 7. Around each real image lies a ball that reaches its k-th real neighbour.

    density: real balls a generated image lies in, over k, on average (may exceed 1); coverage: share of real balls with
    a generated image inside.
    """
    # k + 1: each image is its own nearest
    radius = torch.cat([torch.cdist(part, real).kthvalue(k + 1).values for part in real.split(CHUNK)])
    inside, nearest = torch.zeros(len(made), dtype=torch.float64), torch.full_like(radius, torch.inf)
    for start in range(0, len(made), CHUNK):
        distance = torch.cdist(made[start : start + CHUNK], real)
        inside[start : start + CHUNK] = (distance <= radius).sum(1, dtype=torch.float64)
        nearest = torch.minimum(nearest, distance.min(0).values)
    return float(inside.mean() / k), float((nearest <= radius).double().mean())


def inception(device: str = "cpu") -> tuple[nn.Module, Preprocessing] | None:
    """ImageNet's Inception v3 as timm stores it (safetensors), or None where it is not in the hub's cache.

    Nothing is fetched. It is not the file of the published FIDs, which is a pickle: compare within one report only.
    """
    file = try_to_load_from_cache(f"timm/{INCEPTION}", "model.safetensors")
    if not isinstance(file, str):
        return None
    # by its file, or timm would ask the hub
    network = timm.create_model(INCEPTION, pretrained=True, pretrained_cfg_overlay={"file": file})
    return network.eval().to(device), Preprocessing.of(network)


def _kid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Thousandths."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(KID_SIZE, len(made), len(real))
    # one seed for the drawn subsets: the same images have the same distance
    how = {"kid_subsets": KID_SUBSETS, "kid_subset_size": size, "verbose": False, "rng_seed": 0}
    return 1000 * kid_features_to_metric(made, real, **how)[KEY_METRIC_KID_MEAN]


def _precision_recall(made: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    how = {"prc_neighborhood": NEIGHBOURS, "prc_batch_size": CHUNK, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(made, real, **how)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
