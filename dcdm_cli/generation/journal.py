"""The journal of an unfinished shard of a folder: a line per finished image, appended after the image is in place.

`kill -9` can leave a torn last line or images without a line. Opening the journal keeps the longest beginning of the
shard that is whole, cut to whole batches, so that what is made again is made in the same batches as before: on real
hardware the last bits of an image may depend on its batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcdm_cli.files import storage_errors, write_bytes


class Journal:
    """entries: what is finished, from the shard's first image on. Opening repairs; `append` commits one batch."""

    def __init__(self, file: Path, ids: Sequence[str], batch: int) -> None:
        """ids: the shard's images in order. batch: images made together."""
        self.file = file
        content = file.read_bytes() if file.is_file() else b""
        found = {entry["sample_id"]: entry for entry in map(_parse, content.splitlines()) if entry}
        self.entries = whole_batches(found, ids, batch, self._exists)
        clean = _lines(self.entries)
        if clean != content:
            write_bytes(file, clean)

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """One write, flushed to disk: after a crash either line is whole or it is dropped at the next opening."""
        with storage_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                stream.write(_lines(entries))
                stream.flush()
                os.fsync(stream.fileno())
        self.entries.extend(dict(entry) for entry in entries)

    def _exists(self, path: str) -> bool:
        return (self.file.parent.parent / path).is_file()


def whole_batches(
    found: Mapping[str, dict[str, Any]], ids: Sequence[str], batch: int, exists: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """The entries of the longest run of whole batches, from the first image on, whose images all exist."""
    entries: list[dict[str, Any]] = []
    for sample_id in ids:
        entry = found.get(sample_id)
        if entry is None or (entry["path"] is not None and not exists(entry["path"])):
            return entries[: len(entries) // batch * batch]
        entries.append(entry)
    return entries


def journal_of(entries: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Writes a whole journal: a finished shard becomes an unfinished one when images of it are lost."""
    write_bytes(file, _lines(entries))


def _lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries).encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"sample_id", "path", "sha256"} <= row.keys() else None
