"""The journal of one generated folder: a line per finished image, appended after the image is in place.

`kill -9` can leave a torn last line or images without a line; opening the journal drops both, so what it lists is
exactly what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcdm_cli.files import PART_SUFFIX, storage_errors, write_bytes


class Journal:
    """rows: what is finished, by sample id. Opening repairs; `append` commits one batch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "journal.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        self._repair()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """One write, flushed to disk: after a crash either line is whole or it is dropped at the next opening."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with storage_errors(self.file), self.file.open("ab") as stream:
            stream.write(lines.encode())
            stream.flush()
            os.fsync(stream.fileno())
        self.rows |= {row["sample_id"]: row for row in rows}

    def _repair(self) -> None:
        for leftover in self.folder.rglob(f"*{PART_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        content = self.file.read_bytes() if self.file.is_file() else b""
        kept = [row for row in map(_parse, content.splitlines()) if row and self._whole(row)]
        self.rows = {row["sample_id"]: row for row in kept}
        clean = "".join(json.dumps(row) + "\n" for row in self.rows.values()).encode()
        if clean != content:
            write_bytes(self.file, clean)

    def _whole(self, row: dict[str, Any]) -> bool:
        file = row.get("path")
        return file is None or (self.folder / file).is_file()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "sample_id" in row else None
