"""The split rule and the search for copies, on whole columns: a few bytes per image, so that millions fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SPLITS = ("train", "judge", "test")
TRAIN, JUDGE, TEST, NONE = 0, 1, 2, -1  # as codes


def split_codes(splits: Sequence[str | None]) -> np.ndarray:
    """int8 [N]: positions in SPLITS, -1 for None."""
    known = {name: code for code, name in enumerate(SPLITS)}
    return np.array([NONE if split is None else known[split] for split in splits], np.int8)


def assign_splits(
    splits: Sequence[str | None],
    labels: Sequence[int],
    contents: Sequence[str],
    *,
    judge_fraction: float,
    test_fraction: float,
    test_from: str = "auto",
) -> list[str]:
    """Gives each image one of train, judge and test. Not from the paper, which names a train and a test split only.

    Splits that the source has are kept (its validation split is the judge's); images without one are train. Of a test
    and a judge split, a missing one is carved out of the other, so that a source that holds images out keeps all its
    training images; where both are missing, test is carved out of train, and judge out of test. test_from "train": a
    missing test split is carved out of train in any case. Per class, the given fraction of distinct images, chosen by
    content hash, so that the choice is the same in every run and copies of an image stay together. A class always keeps
    an image in the split that is carved.

    judge_fraction: the judge's share of what is held out for both; test_fraction: the test split's of train, 0 = no
    test split is made.
    """
    codes = assign_codes(
        split_codes(splits),
        np.asarray(labels, np.int64),
        np.asarray(contents, "S"),
        judge_fraction=judge_fraction,
        test_fraction=test_fraction,
        test_from=test_from,
    )
    return [SPLITS[code] for code in codes]


def assign_codes(
    codes: np.ndarray,
    labels: np.ndarray,
    contents: np.ndarray,
    *,
    judge_fraction: float,
    test_fraction: float,
    test_from: str = "auto",
) -> np.ndarray:
    """`assign_splits` for codes int8 [N], labels int [N] and contents bytes [N]."""
    assigned = np.where(codes == NONE, TRAIN, codes).astype(np.int8)
    if not (assigned == TEST).any():
        if (assigned == JUDGE).any() and test_from == "auto":
            _carve(assigned, labels, contents, (JUDGE, TEST), 1 - judge_fraction if test_fraction else 0.0)
        else:
            _carve(assigned, labels, contents, (TRAIN, TEST), test_fraction)
    if not (assigned == JUDGE).any():
        _carve(assigned, labels, contents, (TEST, JUDGE), judge_fraction)
    return assigned


def copies(contents: np.ndarray) -> Iterator[np.ndarray]:
    """Rows int [>= 2] of each content that comes several times, by their first row."""
    _, groups, counts = np.unique(contents, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[groups] > 1)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[rows], prepend=-1))
    found = np.split(rows, starts[1:]) if len(rows) else []
    yield from sorted(found, key=lambda group: int(group[0]))


def _carve(codes: np.ndarray, labels: np.ndarray, contents: np.ndarray, move: tuple[int, int], fraction: float) -> None:
    """Moves the first distinct contents of each class, in the order of their hashes."""
    origin, target = move
    rows = np.flatnonzero(codes == origin)
    if not len(rows):
        return
    # lexsort goes by its last key first: by class, then by hash
    rows = rows[np.lexsort((contents[rows], labels[rows]))]
    label, content = labels[rows], contents[rows]
    is_new = np.r_[True, (label[1:] != label[:-1]) | (content[1:] != content[:-1])]
    _, start, distinct = np.unique(label[is_new], return_index=True, return_counts=True)
    rank = np.arange(is_new.sum()) - np.repeat(start, distinct)
    quota = np.minimum(np.rint(distinct * fraction), distinct - 1)
    moved = (rank < np.repeat(quota, distinct))[np.cumsum(is_new) - 1]
    codes[rows[moved]] = target
