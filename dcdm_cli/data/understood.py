"""What was understood of a source, for people to check: its splits, what was set aside, and what says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.splits import JUDGE, NONE, SPLITS, TEST, TRAIN


@dataclass(frozen=True)
class SplitFacts:
    """split: train, judge or test. classes: with images in it; smallest, largest: images of such a class. origin: where
    the images come from."""

    split: str
    images: int
    classes: int
    smallest: int
    largest: int
    origin: str

    def __str__(self) -> str:
        per_class = f"{self.smallest}" if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        each = f", {per_class} each" if self.images else ""
        return f"{self.split}: {self.images} images of {self.classes} classes{each} ({self.origin})"

    def document(self) -> dict[str, Any]:
        return asdict(self)


def split_facts(before: np.ndarray, after: np.ndarray, labels: np.ndarray, origin: str) -> tuple[SplitFacts, ...]:
    """One per split, also for an empty one.

    before, after: int8 [N], codes in the source (NONE where it has none) and as they are used. labels: int [N]. origin:
    what says the source's splits, "" for none.
    """
    said = origin if (before != NONE).any() else ""
    return tuple(_facts(code, before, after, labels, said) for code in (TRAIN, JUDGE, TEST))


def _facts(code: int, before: np.ndarray, after: np.ndarray, labels: np.ndarray, origin: str) -> SplitFacts:
    here = after == code
    counts = np.bincount(labels[here])
    counts = counts[counts > 0]
    low, high = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    said = "; ".join(_origins(code, before[here], origin)) or "none in the source"
    return SplitFacts(SPLITS[code], int(here.sum()), len(counts), low, high, said)


def _origins(code: int, before: np.ndarray, origin: str) -> Iterator[str]:
    """before: of the images that are in the split `code` now."""
    for source in dict.fromkeys((code, NONE, TRAIN, JUDGE, TEST)):  # its own first, each once
        count = int((before == source).sum())
        if not count:
            continue
        if source == code:
            yield origin
        elif source == NONE and code == TRAIN:
            yield f"{count} that the source puts in no split" if origin else "the source names no splits"
        else:
            yield f"{count} set aside from {SPLITS[TRAIN if source == NONE else source]}"


def class_splits(manifest: Manifest) -> np.ndarray:
    """int64 [classes, splits]: images of each class in each of `SPLITS`."""
    labels, splits = manifest.column("label"), manifest.column("split").astype(str)
    classes = len(manifest.class_names)
    return np.stack([np.bincount(labels[splits == split], minlength=classes) for split in SPLITS], axis=1)


def empty_warnings(facts: Sequence[SplitFacts]) -> Iterator[str]:
    """What will not work with a split that stayed empty. What `dcdm evaluate` does without the judge's is said by who
    knows all of it."""
    if not facts[-1].images:
        yield (
            "no image is left for the test split: `dcdm evaluate` measures on it, and stops without it. Add images, "
            "name one of the source's parts (--split-map NAME=test), or set more aside (--test-fraction); all other "
            "commands go on without it"
        )
