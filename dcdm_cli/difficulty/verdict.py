"""What a scorer says of images, apart from the scorer: whoever hands it on needs neither SciPy nor torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Verdict(NamedTuple):
    """On images with a label each. difficulty float32 [B], predicted: the likeliest class, int [B], rival float32 [B]:
    the largest probability that a class other than the label has. Not from the paper."""

    difficulty: np.ndarray
    predicted: np.ndarray
    rival: np.ndarray
