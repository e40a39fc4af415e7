"""Views: the same every time, one original first, and nothing empty after a turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dcdm_cli.training.views import Views


def test_originals_come_first_then_mirrored_then_jittered(paths: list[Path]) -> None:
    views, count = Views(paths, mirror=True, jittered=2), len(paths)
    assert (views.per_image, len(views)) == (4, 4 * count)
    first = Image.open(paths[1]).convert("RGB")
    assert np.array_equal(views[1], first)
    assert np.array_equal(views[count + 1], ImageOps.mirror(first))
    jittered = [np.asarray(views[k * count + 1]) for k in (2, 3)]
    assert all(picture.shape == (32, 32, 3) for picture in jittered)
    assert not np.array_equal(*jittered)


def test_a_view_is_the_same_every_time_and_another_with_another_seed(paths: list[Path]) -> None:
    one, same, other = (Views(paths, jittered=1, seed=seed)[len(paths)] for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_jitter_leaves_no_empty_corner(tmp_path: Path) -> None:
    Image.new("RGB", (40, 24), (200, 100, 50)).save(tmp_path / "plain.png")
    for view in Views([tmp_path / "plain.png"], jittered=20):
        assert view.size == (40, 24)
        assert np.asarray(view).min() >= 49


def test_values_are_repeated_in_the_order_of_the_views(paths: list[Path]) -> None:
    views = Views(paths[:2], mirror=True, jittered=1)
    assert views.repeat(np.array([5, 7])).tolist() == [5, 7] * 3
    assert views.repeat(np.array([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]] * 3
    assert len(views[0:4]) == 4
    with pytest.raises(IndexError):
        views[6]
