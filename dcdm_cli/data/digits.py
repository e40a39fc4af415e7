"""scikit-learn's digits (real handwriting, 8x8, UCI) as a class-folder tree with a small training split.

200 training images, 600 for the judge, the rest for testing, stratified; a small real set is where difficulty matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dcdm_cli.files import atomic_folder

IMAGE_SIZE = 32
SPLIT_SIZES = {"train": 200, "judge": 600}  # everything else is the test split


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 32, 32] (white ink on black, upscaled bicubically from 8x8) and int64 labels."""
    raw: Any = load_digits()
    ink = (raw.images / 16 * 255).round().astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in ink]
    return np.stack(images), raw.target


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers per split, the same every time."""
    rows = np.arange(len(labels))
    splits: dict[str, np.ndarray] = {}
    for name, size in SPLIT_SIZES.items():
        chosen, rows = train_test_split(rows, train_size=size, stratify=labels[rows], random_state=0)
        splits[name] = np.sort(chosen)
    return splits | {"test": np.sort(rows)}


def write_digits(folder: Path) -> Path:
    """Writes `folder/<split>/<digit>/<row>.png` once; returns the folder."""
    if folder.is_dir():
        return folder
    images, labels = digit_images()
    with atomic_folder(folder) as part:
        for split, rows in split_rows(labels).items():
            for row in rows:
                file = part / split / str(labels[row]) / f"{row:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[row]).convert("RGB").save(file)
    return folder
