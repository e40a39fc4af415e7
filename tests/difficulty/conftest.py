"""Two hundred real digits, a network that learns them in about a second, and manifests of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.files import hash_bytes
from dcdm_cli.run.settings import ScoreConfig

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MakeManifest = Callable[..., Manifest]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [600, 32, 32, 3] and int64 [600]: white on black; the first 200 are for training."""
    data: Any = load_digits()
    chosen = np.random.default_rng(0).permutation(len(data.target))[:600]  # the set is sorted by writer
    small = [Image.fromarray((image / 16 * 255).round().astype(np.uint8)) for image in data.images[chosen]]
    large = [image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for image in small]
    return np.stack([np.asarray(image) for image in large]), data.target[chosen].astype(np.int64)


@pytest.fixture(scope="session")
def network() -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "method": "crossfit",
            "model": "resnet10t",
            "model_args": {"channels": [16, 24, 32, 64], "stem_width": 8},
            "image_size": 32,
            "batch_size": 32,
            "steps": 120,
            "lr": 6e-3,
            "scale": [0.7, 1.0],
            "hflip": 0.0,
            "rotate": 10.0,
        }
    )


@pytest.fixture(scope="session")
def quick(network: ScoreConfig) -> ScoreConfig:
    """For tests of the machinery: learns next to nothing, in a tenth of a second."""
    return network.model_copy(update={"steps": 3, "batch_size": 8, "folds": 3})


@pytest.fixture
def make_manifest(tmp_path: Path) -> MakeManifest:
    """Writes images as PNG and lists them; sample_id = the pixels, as in a real manifest."""

    def make(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...] = NAMES) -> Manifest:
        rows = []
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(pixels).save(tmp_path / f"{index:04}.png")
            rows.append({"sample_id": hash_bytes(pixels.tobytes()), "path": f"{index:04}.png", "label": int(label)})
        return Manifest.from_rows(rows, class_names, tmp_path)

    return make
