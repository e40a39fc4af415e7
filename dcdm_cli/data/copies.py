"""Copies: the same picture several times, in more than one split (a leak) or under more than one label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dcdm_cli.data.splits import copies

_SHOWN = 3
_COLUMNS = ["split", "class_name", "path"]


@dataclass(frozen=True)
class Copies:
    """Rows int [>= 2] of each picture that is there several times. A group may be in `leaks` and in `labels`; `plain`:
    those in neither."""

    leaks: tuple[np.ndarray, ...] = ()
    labels: tuple[np.ndarray, ...] = ()
    plain: tuple[np.ndarray, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.leaks or self.labels or self.plain)


def find_copies(contents: np.ndarray, splits: np.ndarray, labels: np.ndarray) -> Copies:
    """contents bytes [N], splits int8 [N], labels int [N]."""
    groups = list(copies(contents))
    leaks = [rows for rows in groups if len(np.unique(splits[rows])) > 1]
    torn = [rows for rows in groups if len(np.unique(labels[rows])) > 1]
    plain = [rows for rows in groups if len(np.unique(splits[rows])) == len(np.unique(labels[rows])) == 1]
    return Copies(tuple(leaks), tuple(torn), tuple(plain))


def copy_warnings(found: Copies, table: pa.Table) -> Iterator[str]:
    """table: the manifest's."""
    if found.leaks:
        yield f"leak: {len(found.leaks)} images are in more than one split: {_some(found.leaks, table)}"
    if found.labels:
        yield f"{len(found.labels)} images are in more than one class: {_some(found.labels, table)}"
    if found.plain:
        yield f"{len(found.plain)} images have exact copies in their split: {_some(found.plain, table)}"


def copy_rows(found: Copies, table: pa.Table) -> Iterator[dict[str, Any]]:
    """One row per group, for a JSON-lines file: kind (leak, labels or copy) and images (split, class_name, path)."""
    for kind, groups in {"leak": found.leaks, "labels": found.labels, "copy": found.plain}.items():
        for rows in groups:
            yield {"kind": kind, "images": _rows(rows, table)}


def _some(groups: Sequence[np.ndarray], table: pa.Table) -> str:
    shown = "; ".join(
        " = ".join(f"{row['split']}:{row['path']}" for row in _rows(rows[:_SHOWN], table)) for rows in groups[:_SHOWN]
    )
    return shown + (f"; and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")


def _rows(rows: np.ndarray, table: pa.Table) -> list[dict[str, Any]]:
    return table.select(_COLUMNS).take(pa.array(rows)).to_pylist()
