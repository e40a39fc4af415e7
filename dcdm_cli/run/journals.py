"""Journals: what long work leaves row by row, so that a stopped run goes on. Every row has a hash of what it says.

A row that says something else than was written is named and taken out, and what it stood for is made again. Rows from
before there were hashes are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dcdm_cli.files import append_json_lines, hash_json, write_bytes
from dcdm_cli.gate import json_lines, parse_line, typed

T = TypeVar("T")
HASH = "row_hash"


def append_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`append_json_lines`, each row with its hash."""
    append_json_lines(file, [{**row, HASH: hash_json(row)} for row in rows])


def kept_rows(file: Path, kind: type[T], say: Callable[[str], None]) -> list[T]:
    """The whole and well-formed rows of a file that this process alone writes, as `gate.read_lines` gives them; none
    without a file. What was changed since is said, and is in the file no more."""
    if said := drop_changed(file):
        say(f"{said}: what they stood for is made again")
    return [row for _, line in _rows(file) if (row := _as(kind, line)) is not None]


def drop_changed(file: Path) -> str:
    """What `changed_rows` says; these rows are gone then."""
    if said := changed_rows(file):
        write_bytes(file, b"".join(line for line in json_lines(file) if _holds(parse_line(line, dict[str, Any]))))
    return said


def changed_rows(file: Path) -> str:
    """Which rows do not say what was written, in words; empty where there are none."""
    changed = [number for number, row in _rows(file) if not _holds(row)]
    shown = ", ".join(map(str, changed[:3])) + (", …" if len(changed) > 3 else "")
    return f"{file} has rows that do not say what was written (line {shown})" if changed else ""


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of what is JSON: a crash may have torn a line."""
    for number, line in enumerate(json_lines(file), 1):
        if (row := parse_line(line, dict[str, Any])) is not None:
            yield number, row


def _holds(row: Mapping[str, Any] | None) -> bool:
    if row is None or HASH not in row:  # torn, which readers pass over, or from before there were hashes
        return True
    return row[HASH] == hash_json({name: value for name, value in row.items() if name != HASH})


def _as(kind: type[T], row: Mapping[str, Any]) -> T | None:
    """None for a row that is no `kind`, as older ones may be."""
    try:
        return typed(kind, {name: value for name, value in row.items() if name != HASH})
    except ValueError:
        return None
