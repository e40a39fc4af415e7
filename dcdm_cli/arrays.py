"""Small things done to arrays in every room."""

from __future__ import annotations

from typing import Any

import numpy as np


def evenly(count: int, most: int) -> np.ndarray:
    """int64: at most `most` (at least 1) positions below `count`, spread evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def rounded(value: Any, digits: int = 4) -> float:
    """A number as results show it."""
    return round(float(value), digits)
