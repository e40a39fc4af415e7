"""One seed per image, from the run seed and the image's index alone: batch, worker and resume cannot change it."""

from __future__ import annotations

import numpy as np


def image_seed(run_seed: int, index: int) -> int:
    """Below 2**53, because larger integers lose digits in readers that go through float64."""
    return int(np.random.SeedSequence((run_seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(11))
