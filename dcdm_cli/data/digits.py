"""scikit-learn's digits (real handwriting, 8x8, UCI) as a class-folder tree with a small training split.

200 training images, 600 for the judge, the rest for testing, stratified; a small real set is where difficulty matters.
`digits:50` has the first 5 training images of each class instead of all 20; judge and test images are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcdm_cli.errors import UsageError
from dcdm_cli.files import atomic_folder

NAME = "digits"  # as a source
CLASSES = 10
IMAGE_SIZE = 32
SPLIT_SIZES = {"train": 200, "judge": 600}  # everything else is the test split


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 32, 32] (white ink on black, upscaled bicubically from 8x8) and int64 labels."""
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    ink = (raw.images / 16 * 255).round().astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in ink]
    return np.stack(images), raw.target


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers per split, the same every time."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    splits: dict[str, np.ndarray] = {}
    for name, size in SPLIT_SIZES.items():
        chosen, rows = train_test_split(rows, train_size=size, stratify=labels[rows], random_state=0)
        splits[name] = np.sort(chosen)
    return splits | {"test": np.sort(rows)}


def is_digits(source: str) -> bool:
    """Whether a source means the embedded images. A folder of that name is `./digits`."""
    return source.partition(":")[0] == NAME


def training_images(source: str) -> int:
    """Of `digits` or `digits:N`. Raises UsageError for a number that is none of theirs."""
    most, (_, colon, text) = SPLIT_SIZES["train"], source.partition(":")
    if not colon:
        return most
    if not (text.isdecimal() and 2 * CLASSES <= int(text) <= most and int(text) % CLASSES == 0):
        raise UsageError(
            f"{source!r}: there are {most} embedded training digits, the same number of each class",
            f"give a multiple of {CLASSES} from {2 * CLASSES} to {most}, as in {NAME}:50",
        )
    return int(text)


def write_digits(folder: Path, training: int = SPLIT_SIZES["train"]) -> Path:
    """Writes `folder/<split>/<digit>/<row>.png` once, `training` images in train; returns the folder."""
    if folder.is_dir():
        return folder  # whole, because it was renamed into place
    images, labels = digit_images()
    with atomic_folder(folder) as part:
        splits = split_rows(labels)
        if training < len(splits["train"]):  # all of them are not quite as many of each class
            splits["train"] = _first_of_each(splits["train"], labels, training // CLASSES)
        for split, rows in splits.items():
            for row in rows:
                file = part / split / str(labels[row]) / f"{row:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[row]).convert("RGB").save(file)
    return folder


def _first_of_each(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.concatenate([rows[labels[rows] == digit][:count] for digit in range(CLASSES)]))
