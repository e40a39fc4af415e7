"""The journal of an unfinished shard of a folder: a line per finished image, appended after the image is in place.

Images are entered batch by batch, and a batch counts only as a whole: `kill -9` can leave a torn last line or images
without a line, and what is made again is then made in the same batches as before. On real hardware the last bits of an
image may depend on its batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dcdm_cli.data.archives import MAX_IMAGE
from dcdm_cli.data.manifest import RULES, SCHEMA
from dcdm_cli.data.shard_files import IMAGE_PATH
from dcdm_cli.files import storage_errors, write_bytes
from dcdm_cli.gate import PLAN_ID, Column, check_columns, parse_line, refuse_first
from dcdm_export import places

Entry = dict[str, Any]
_OF = "batch"  # in each line: how many were entered together
ROWS = pa.schema([*SCHEMA, ("sha256", pa.string()), ("bytes", pa.int64())])  # bytes, sha256: of the image's file
_KNOWN = {"path": False, "sha256": True, "bytes": True}
_RULES = {
    **RULES,
    "sample_id": Column(pattern=PLAN_ID),
    "path": Column(pattern=IMAGE_PATH, nullable=True),
    "sha256": Column(pattern="[0-9a-f]{64}", nullable=True),
    "bytes": Column(low=0, high=MAX_IMAGE, nullable=True),
}


class Journal:
    """entries: what is finished, from the shard's first image on. Opening repairs; `append` commits one batch."""

    def __init__(self, file: Path, ids: Sequence[str]) -> None:
        """ids: the shard's images in order."""
        self.file, self.entries = file, []
        content = file.read_bytes() if file.is_file() else b""
        clean = b""
        for batch in _batches(content):
            expected = ids[len(self.entries) : len(self.entries) + len(batch)]
            if [entry["sample_id"] for entry in batch] != list(expected) or not self._are_there(batch):
                break
            self.entries += batch
            clean += _lines(batch)
        if clean != content:
            write_bytes(file, clean)

    def append(self, entries: Sequence[Entry]) -> None:
        """One write, flushed to disk: after a crash the batch is whole or it is dropped at the next opening."""
        with storage_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                stream.write(_lines(entries))
                stream.flush()
                os.fsync(stream.fileno())
        self.entries += entries

    def _are_there(self, batch: Sequence[Entry]) -> bool:
        """Whether these are rows of ours, and their images lie in the folder."""
        root = self.file.parent.parent
        try:
            check_entries(pa.Table.from_pylist([{c: entry.get(c) for c in ROWS.names} for entry in batch], ROWS))
            return all(places.inside(root, entry["path"]).is_file() for entry in batch if entry["path"] is not None)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):  # OutsideError is a ValueError
            return False


def check_entries(rows: pa.Table) -> None:
    """Rows of a shard's images. Raises ValueError naming column, row, value and rule."""
    check_columns(rows, _RULES)
    blank, hashed, sized = (rows[name].is_valid().to_numpy() == known for name, known in _KNOWN.items())
    refuse_first(rows, "path", blank | (hashed & sized), "its sha256 and bytes must be known")


def beginning(entries: Sequence[Entry], exists: Callable[[str], bool], batch: int) -> list[Entry]:
    """The entries of the longest run of whole batches, from the first image on, whose images all exist."""
    lost = (i for i, entry in enumerate(entries) if entry["path"] is not None and not exists(entry["path"]))
    first = next(lost, None)
    return list(entries) if first is None else list(entries[: first // batch * batch])


def write_journal(entries: Sequence[Entry], file: Path, batch: int) -> None:
    """A whole journal: a finished shard becomes an unfinished one when images of it are lost."""
    batches = [entries[start : start + batch] for start in range(0, len(entries), batch)]
    write_bytes(file, b"".join(map(_lines, batches)))


def _batches(content: bytes) -> Iterator[list[Entry]]:
    """Whole batches, up to the first line that is none."""
    batch: list[Entry] = []
    for line in content.splitlines():
        entry = parse_line(line, dict[str, Any])
        if entry is None or not {"sample_id", "path", "sha256", _OF} <= entry.keys():
            return
        size = entry.pop(_OF)
        batch.append(entry)
        if len(batch) == size:
            yield batch
            batch = []


def _lines(batch: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps({**entry, _OF: len(batch)}, allow_nan=False) + "\n" for entry in batch).encode()
