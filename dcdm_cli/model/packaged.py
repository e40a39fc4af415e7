"""The base models that come with the package, by their names; importable in no time.

tiny: digits, pretrained on MNIST in many styles. small: pictures of 32 px, pretrained on 45,000 of CIFAR-10's training
images. Each folder's `pretraining.json` says how.
"""

from __future__ import annotations

from pathlib import Path

TINY_NAME, SMALL_NAME = "tiny", "small"
TINY_BASE, SMALL_BASE = (Path(__file__).parent / f"{name}_base" for name in (TINY_NAME, SMALL_NAME))
PACKAGED = {TINY_NAME: TINY_BASE, SMALL_NAME: SMALL_BASE}


def resolve_base(name: str) -> str:
    """A packaged model's name becomes its folder, wherever the package lies; anything else is a folder or hub id as it
    stands."""
    return str(PACKAGED.get(name, name))
