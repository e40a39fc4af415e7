"""The digits base's training images: one digit in many styles, the same every time."""

from __future__ import annotations

import numpy as np

from benchmarks.bases.styles import SIDE, restyle, styled


def a_digit() -> np.ndarray:
    digit = np.zeros((28, 28), np.uint8)
    digit[6:22, 12:16] = 220
    return digit


def test_styles_differ_and_come_out_the_same_again() -> None:
    drawn = styled(a_digit()[None], 20, seed=3)
    assert drawn.shape == (20, SIDE, SIDE) and drawn.dtype == np.uint8
    assert len({image.tobytes() for image in drawn}) == 20
    assert np.array_equal(drawn, styled(a_digit()[None], 20, seed=3))


def test_every_style_shows_its_ink_at_the_size_it_is_meant_to_have() -> None:
    for seed in range(50):
        rows = np.nonzero(restyle(a_digit(), np.random.default_rng(seed)).max(axis=1) > 40)[0]
        assert 12 <= rows[-1] - rows[0] + 1 <= SIDE


def test_an_image_without_ink_stays_without() -> None:
    assert restyle(np.zeros((28, 28), np.uint8), np.random.default_rng(0)).max() == 0
