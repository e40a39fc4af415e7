"""Factors of single images, and which of them move with difficulty."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dcdm_cli.evaluation.factors import FACTORS, WORDS, MeasuredFactors, hard_factors, measure, table


def square(side: int, at: tuple[int, int], shade: int = 255, size: int = 64) -> Image.Image:
    image = Image.new("RGB", (size, size))
    image.paste((shade, shade, shade), (*at, at[0] + side, at[1] + side))
    return image


def test_each_factor_follows_what_it_is_named_after() -> None:
    small, large = measure(square(8, (28, 28))), measure(square(32, (16, 16)))
    assert large["size"] > 10 * small["size"] and large["brightness"] > small["brightness"]
    assert measure(square(8, (28, 28)))["position"] < 0.05 < 0.5 < measure(square(8, (56, 56)))["position"]
    assert measure(square(32, (16, 16), 80))["contrast"] < large["contrast"]
    blurred = measure(square(32, (16, 16)).filter(ImageFilter.GaussianBlur(4)))
    assert blurred["sharpness"] < 0.5 * large["sharpness"]
    red = Image.new("RGB", (64, 64), (200, 30, 30))
    assert measure(red)["colour"] > 0.2 and large["colour"] == 0


def test_resolution_changes_little() -> None:
    once, twice = measure(square(16, (24, 24))), measure(square(64, (96, 96), size=256))
    assert twice == pytest.approx(once, abs=0.05)


def test_a_constant_image_and_a_single_pixel_are_no_error() -> None:
    assert measure(Image.new("RGB", (9, 9), (7, 7, 7)))["size"] == 0
    assert set(measure(Image.new("RGB", (1, 1), "white"))) == set(FACTORS) == set(WORDS)
    assert table([]).shape == (0, len(FACTORS))


def measured(count: int = 60) -> MeasuredFactors:
    """Class 0 gets darker as it gets harder and is taken for class 1; class 1 does nothing; class 2 is tiny."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], count)
    difficulty = np.tile(np.linspace(0, 1, count), 2)
    factors = rng.normal(size=(2 * count, len(FACTORS)))
    factors[:count, 0] = -difficulty[:count]
    predicted = np.where((label == 0) & (difficulty > 0.8), 1, label)
    tiny = MeasuredFactors(np.ones((3, len(FACTORS))), np.ones(3), np.full(3, 2), np.full(3, -1))
    return MeasuredFactors(
        *(np.concatenate(pair) for pair in zip(
            (factors, difficulty, label, predicted),
            (tiny.factors, tiny.difficulty, tiny.label, tiny.predicted), strict=True)
        )
    )  # fmt: skip


def test_only_what_stands_out_is_put_into_words() -> None:
    darker, still, tiny = hard_factors(measured(), ["a", "b", "c", "no images"])
    assert darker["moving"] == ["darker"] and darker["correlations"]["brightness"] == -1.0
    assert darker["confused_with"] == "b" and darker["confused_share"] == pytest.approx(0.2, abs=0.02)
    assert still["moving"] == [] and still["confused_with"] is None
    assert tiny["n"] == 3 and set(tiny["correlations"].values()) == {None}
