"""Sets that look otherwise than their owner thinks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.data.images import DecodeOptions
from dcdm_cli.data.sources import Scan

from .conftest import encoded, picture

Scanned = Callable[..., Scan]


def write(root: Path, images: list[Image.Image]) -> Path:
    for index, image in enumerate(images):
        file = root / ("cat", "dog")[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(image))
    return root


def grey(bits: int, count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(bits)
    values = [rng.integers(0, 2**bits, (8, 8)).astype(np.uint16) for _ in range(count)]
    values[0][0, 0] = 2**bits - 1
    return [Image.fromarray(value) for value in values]


@pytest.mark.parametrize("bits", [10, 12])
def test_few_bits_in_sixteen_are_named_with_their_range(scanned: Scanned, tmp_path: Path, bits: int) -> None:
    source = write(tmp_path / "deep", grey(bits))
    (warning,) = scanned(source).warnings
    assert f"4 deep grey images have no value above {2**bits - 1} of 65535" in warning
    assert f"--value-range 0,{2**bits - 1}" in warning
    assert scanned(source, decode=DecodeOptions(value_range=(0, 2**bits - 1))).warnings == ()


def test_sixteen_bits_that_are_used_are_no_news(scanned: Scanned, tmp_path: Path) -> None:
    assert scanned(write(tmp_path / "deep", grey(16))).warnings == ()


def test_almost_black_colour_is_named(scanned: Scanned, tmp_path: Path) -> None:
    dark = [Image.fromarray(np.asarray(picture(seed)) // 16) for seed in range(4)]
    (warning,) = scanned(write(tmp_path / "dark", dark)).warnings
    assert warning.startswith("4 images are almost black")


@pytest.mark.parametrize(("size", "warns"), [((64, 8), True), ((8, 64), True), ((12, 8), False), ((8, 8), False)])
def test_a_crop_that_leaves_much_out_is_announced(
    scanned: Scanned, tmp_path: Path, size: tuple[int, int], warns: bool
) -> None:
    source = write(tmp_path / "wide", [picture(seed, size) for seed in range(4)])
    warnings = scanned(source, decode=DecodeOptions(fit="crop")).warnings
    assert [("4 of 4 images" in w and "88% of them" in w and "--fit pad" in w) for w in warnings] == [True] * warns
    for fit in ("pad", "stretch"):
        assert scanned(source, decode=DecodeOptions(fit=fit)).warnings == ()


def test_very_long_images_are_shown_whole_and_said_to_be(scanned: Scanned, tmp_path: Path) -> None:
    sizes = [(64, 8), (8, 64), (16, 8), (8, 8)]
    source = write(tmp_path / "mixed", [picture(seed, size) for seed, size in enumerate(sizes)])
    whole, middle = scanned(source).warnings
    assert whole.startswith("2 of 4 images are longer than 2 to 1") and "distorted" in whole and "--fit crop" in whole
    assert middle.startswith("1 of 4 images are longer than 3 to 2") and "50% of them is cropped away" in middle


def test_animations_are_counted(scanned: Scanned, tmp_path: Path) -> None:
    source = write(tmp_path / "moving", [picture(seed) for seed in range(4)])
    frames = [picture(9), picture(8)]
    frames[0].save(source / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    (warning,) = scanned(source).warnings
    assert warning.startswith("1 image has several frames or pages") and "--animated reject" in warning
    (rejected,) = scanned(source, decode=DecodeOptions(animated="reject"), max_bad=0.5).rejected
    assert (rejected.path, rejected.reason) == ("cat/moving.gif", "animated")
