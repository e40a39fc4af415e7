"""Views of the training images: each image as it is, mirrored, and in jittered copies.

Not from the paper. A small real set shows few images of each difficulty. Copies that are slightly turned, moved, scaled
and sheared are new images to the scorer; each is scored by the fold models that have not seen its original, so that the
encoder learns from many more pairs of image and difficulty. The control without difficulty sees the same views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from dcdm_cli.data.images import RejectedImage, decode_image
from dcdm_cli.errors import NotFoundError

DEGREES, SHEAR = 8.0, 6.0  # largest turn and shear, degrees
SHIFT, SCALE = 0.04, (0.9, 1.1)  # largest shift as a share of the side; range of the scale
MARGIN = 0.25  # share of each side that is mirrored outwards, so that no corner is empty after a turn


@dataclass(frozen=True)
class Views(Sequence[Image.Image]):
    """RGB images, made when asked for: all originals, then all mirrored ones if `mirror`, then `jittered` copies of
    all. View i shows the image i % len(paths). Jitter depends on the seed and i alone."""

    paths: Sequence[Path]
    mirror: bool = False
    jittered: int = 0
    seed: int = 0

    @property
    def per_image(self) -> int:
        return 1 + self.mirror + self.jittered

    def __len__(self) -> int:
        return len(self.paths) * self.per_image

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        """Raises NotFoundError for an image that could be read when it was scored and no longer can."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            # what ends an iteration over a Sequence
            raise IndexError(index)
        number, image = divmod(index, len(self.paths))
        picture = _decoded(self.paths[image])
        if number == 0:
            return picture
        if self.mirror and number == 1:
            return ImageOps.mirror(picture)
        return _jittered(picture, self.mirror, (self.seed, index))

    def repeat(self, values: np.ndarray) -> np.ndarray:
        """One value per image -> one per view."""
        return np.tile(values, (self.per_image, *[1] * (values.ndim - 1)))


def _jittered(image: Image.Image, mirror: bool, seed: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = image.size
    margin = [round(MARGIN * width), round(MARGIN * height)]
    picture: Any = ImageOps.mirror(image) if mirror and rng.random() < 0.5 else image
    shift = [round(side * rng.uniform(-SHIFT, SHIFT)) for side in (width, height)]
    picture = transforms.pad(picture, margin, padding_mode="reflect")
    picture = transforms.affine(
        picture,
        rng.uniform(-DEGREES, DEGREES),
        shift,
        rng.uniform(*SCALE),
        [rng.uniform(-SHEAR, SHEAR)],
        InterpolationMode.BILINEAR,
    )
    left, top = margin
    return picture.crop((left, top, left + width, top + height))


def _decoded(path: Path) -> Image.Image:
    try:
        return decode_image(path)
    except RejectedImage as error:
        raise NotFoundError(f"{path}: {error}", "the images have changed: dcdm score", file=path) from error
