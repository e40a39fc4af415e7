"""One seed per image, from the run seed and the image's index alone: batch, worker and resume cannot change it.

A counter hash instead of a generator, so that a million seeds are one array operation and any one of them can be had
without the others.
"""

from __future__ import annotations

import numpy as np

SEED_BITS = 53  # larger integers lose digits in readers that go through float64


def image_seeds(run_seed: int, indexes: np.ndarray) -> np.ndarray:
    """Seeds int64 [N] in [0, 2**53) of the images at `indexes`, int64 [N].

    The low 32 bits, which are all that torch's CPU generator looks at, are a permutation of the index's low 32 bits
    that the run seed picks: among 4 billion images of a run no two start from the same noise. The other 21 bits hash
    the whole index. The mixing is Wellons' lowbias32.
    """
    keys = np.random.SeedSequence(run_seed).generate_state(4, np.uint32)
    index = np.asarray(indexes).astype(np.uint64)
    low, block = index.astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    # a bijection of the low bits each time: what is mixed into them is the same within a block
    for key in keys[:2]:
        low = _mix32(low ^ _mix32(block ^ key) ^ key)
    high = _mix32(_mix32(low ^ keys[2]) ^ block ^ keys[3]) >> np.uint32(32 - (SEED_BITS - 32))
    return (high.astype(np.int64) << 32) | low.astype(np.int64)


def image_seed(run_seed: int, index: int) -> int:
    """The seed of one image."""
    return int(image_seeds(run_seed, np.array([index]))[0])


def mix64(values: np.ndarray) -> np.ndarray:
    """A bijection on uint64 that scatters neighbours (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix32(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x7FEB352D)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))
