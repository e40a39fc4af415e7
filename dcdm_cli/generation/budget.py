"""How many images of each class: budgets, long tails, and tables in which users name single classes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.gate import shorten
from dcdm_cli.run.origins import nearest


@dataclass(frozen=True)
class Budget:
    """How many images. The first that is given counts: counts, per_class, balance, count, ratio.

    counts: label -> images, none for the others. balance: the rarest classes first, so that real and generated images
    together come out level; up to the largest class, or as far as `count` goes.
    """

    per_class: int | None = None
    count: int | None = None
    ratio: float | None = None
    counts: Mapping[int, int] | None = None
    balance: bool = False

    def per_label(self, real_counts: np.ndarray) -> np.ndarray:
        """Images per class, int64 [classes]. Raises UsageError for a budget of nothing, or two that exclude another."""
        self._check()
        counts = self._counts(np.asarray(real_counts, np.int64))
        if counts.sum() < 1:
            raise UsageError("the budget comes to no images", "give --count, --per-class or a larger --ratio")
        return counts

    def _counts(self, real: np.ndarray) -> np.ndarray:
        if self.counts is not None:
            counts = np.zeros(len(real), np.int64)
            counts[list(self.counts)] = list(self.counts.values())
            return counts
        if self.per_class is not None:
            return np.full(len(real), self.per_class)
        if self.balance:
            return fill_level(real, self.count)
        total = self.count if self.count is not None else round((self.ratio or 0) * real.sum())
        return spread(real, total)

    def _check(self) -> None:
        # not --count, which bounds --balance, nor --ratio, which has a default
        given = {"--counts": self.counts is not None, "--per-class": self.per_class is not None}
        given["--balance"] = self.balance
        chosen = [flag for flag, is_given in given.items() if is_given]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other", "give one of them")


def spread(weights: np.ndarray, total: int) -> np.ndarray:
    """`total` in proportion to `weights`, exactly (largest remainder). int64 [classes]"""
    share = weights / max(1, weights.sum()) * total  # 1: without any weight there is nothing to divide by
    counts = np.floor(share).astype(np.int64)
    # stable: equal remainders go to the first classes, on every machine
    counts[np.argsort(counts - share, kind="stable")[: total - counts.sum()]] += 1
    return counts


def fill_level(real: np.ndarray, total: int | None) -> np.ndarray:
    """What each class lacks to be as large as the largest; with `total`, to a level that costs just that much."""
    top = int(real.max())
    missing = top - real
    if total is None:
        return missing
    if total >= missing.sum():
        # once all are level, what is left goes to all alike
        return missing + spread(np.ones_like(real), total - int(missing.sum()))
    low, high = 0, top  # the highest whole level that `total` reaches lies in [low, high)
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(level - real, 0).sum() <= total else (low, level)
    counts = np.maximum(low - real, 0)
    # too few for another level: the first classes get one more
    rest = np.flatnonzero(real <= low)[: total - counts.sum()]
    counts[rest] += 1
    return counts


def read_class_table(path: Path, column: str, class_names: Sequence[str]) -> dict[int, Any]:
    """label -> value from a CSV file with the columns `class` and `column`, or a JSON object {class: value}.

    Raises NotFoundError without a file, UsageError for another layout, an unknown class or one that comes twice.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    table: dict[int, Any] = {}
    for name, value in _read_pairs(path, column):
        if name not in labels:
            raise UsageError(
                f"{path}: there is no class {shorten(name)}", nearest(name, list(class_names)[:1000]), file=path
            )
        if labels[name] in table:
            raise UsageError(f"{path}: class {shorten(name)} comes twice", "keep one row per class", file=path)
        table[labels[name]] = value
    return table


def read_counts(path: Path, class_names: Sequence[str]) -> dict[int, int]:
    """label -> images, from a table with the column `count`. Raises UsageError for what is no whole number >= 0."""
    table = read_class_table(path, "count", class_names)
    for label, value in table.items():
        # before int(): a number of thousands of digits is refused by name, not in Python's words
        if not re.fullmatch(r"[0-9]{1,9}", str(value).strip()):
            raise UsageError(
                f"{path}: {shorten(value)} images of class {class_names[label]!r}: give a whole number from 0 up, of "
                "at most nine digits",
                "correct that row",
                file=path,
            )
    return {label: int(value) for label, value in table.items()}


def _read_pairs(path: Path, column: str) -> list[tuple[str, Any]]:
    example = f'a CSV file with the header class,{column}, or JSON: {{"cat": ...}}'
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets write a byte order mark
        if text.lstrip().startswith("{"):
            # pairs: a dict would keep the last row of a class that comes twice, and hide that it does
            return list(json.loads(text, object_pairs_hook=list))
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return [(row["class"], row[column]) for row in rows]
    except FileNotFoundError as error:
        raise NotFoundError(f"no table at {path}", f"write {example}", file=path) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:  # Recursion: nested too deep
        raise UsageError(f"cannot read {path}: {error!r}", f"write {example}", file=path) from error
