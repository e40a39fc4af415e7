"""What a scorer says of images, apart from the scorer: whoever hands it on needs neither SciPy nor torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Images uint8 [B, H, W, 3] and labels int [B] -> bool [B]: whether each image shows its label, asked of a classifier
# that is not the scorer.
Checker = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Verdict(NamedTuple):
    """On images with a label each. difficulty float32 [B], predicted: the likeliest class, int [B], rival float32 [B]:
    the largest probability that a class other than the label has, None where there is no scorer. shows bool [B]:
    whether a second classifier sees the label, None where none was asked. Not from the paper."""

    difficulty: np.ndarray
    predicted: np.ndarray
    rival: np.ndarray | None
    shows: np.ndarray | None = None

    def only(self, index: int) -> Verdict:
        """On one of the images."""
        columns: list[Any] = [None if column is None else column[index : index + 1] for column in self]
        return Verdict(*columns)


Measure = Callable[[np.ndarray, np.ndarray], Verdict]  # of images uint8 [B, H, W, 3] with labels int64 [B]


def with_check(measure: Measure | None, checker: Checker | None) -> Measure | None:
    """Scorer and label check as one measure; either may be missing."""
    if checker is None:
        return measure

    def both(images: np.ndarray, labels: np.ndarray) -> Verdict:
        said = measure(images, labels) if measure is not None else _unscored(len(images))
        return said._replace(shows=checker(images, labels))

    return both


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """Of batches of one measure, one after the other."""
    # of one measure, whose batches all have a column or none
    columns: list[Any] = [None if c[0] is None else np.concatenate(c) for c in zip(*verdicts, strict=True)]
    return Verdict(*columns)


def _unscored(count: int) -> Verdict:
    return Verdict(np.full(count, np.nan, np.float32), np.full(count, -1), None)
