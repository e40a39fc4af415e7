"""MNIST in many styles: the data that the packaged digits base is pretrained on.

Each handwritten digit is cut to its ink and drawn again in another size, width, place, angle, sharpness and contrast,
so that the base knows real handwriting without knowing one scanner's look. Other people's digits than the target's
(scikit-learn's, from UCI's "optical recognition"), so that fine-tuning has a gap to close. Not from the paper.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

SIDE = 32
INK = 48  # of 255: what counts as ink when a digit is cut out


def read_digits(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """data: Parquet with `image` (struct with PNG `bytes`, 28x28 grey, white ink) and `label`.

    Returns uint8 [N, 28, 28] and int64 [N].
    """
    table = pq.read_table(data, columns=["image", "label"])
    pictures = [Image.open(io.BytesIO(row["bytes"])).convert("L") for row in table["image"].to_pylist()]
    return np.stack([np.asarray(picture) for picture in pictures]), np.asarray(table["label"], np.int64)


def styled(digits: np.ndarray, styles: int, seed: int) -> np.ndarray:
    """`styles` drawings of each digit: uint8 [styles * N, 32, 32], all digits once, then all again."""
    drawn = np.empty((styles * len(digits), SIDE, SIDE), np.uint8)
    for row in range(len(drawn)):
        drawn[row] = restyle(digits[row % len(digits)], np.random.default_rng((seed, row)))
    return drawn


def restyle(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One digit (uint8 [H, W], white ink) in a random style: uint8 [32, 32]."""
    image = Image.fromarray(digit)
    if rng.random() < 0.5:  # before it is cut out, so that the frame's edges cut no stroke off
        image = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC)
    image = _placed(_cut(image), rng)
    sharpness = rng.random()
    if sharpness < 1 / 3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 2.2))))
    elif sharpness < 2 / 3:
        small = int(rng.integers(7, 20))
        image = image.resize((small, small), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, np.float32) * rng.uniform(0.8, 1.6), 0, 255).astype(np.uint8)


def _cut(image: Image.Image) -> Image.Image:
    rows, columns = np.nonzero(np.asarray(image) > INK)
    if len(rows) == 0:
        return image
    return image.crop((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))


def _placed(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    height = int(rng.integers(20, SIDE + 1))
    width = round(ink.width * height / ink.height * rng.uniform(0.75, 1.25))
    width = int(np.clip(width, 4, SIDE))
    frame = Image.new("L", (SIDE, SIDE))
    free: Any = np.array([SIDE - width, SIDE - height])
    corner = np.clip(np.round(free / 2 + rng.normal(0, 1.2, 2)), 0, free).astype(int)
    frame.paste(ink.resize((width, height), Image.Resampling.BICUBIC), (int(corner[0]), int(corner[1])))
    return frame
