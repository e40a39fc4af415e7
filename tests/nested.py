"""Folders in one another, more of them than Python calls may be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEPTH = 1200


@contextmanager
def nested(folder: Path, *files: str) -> Iterator[Path]:
    """Yields the last of `DEPTH` folders below `folder`, with these files in it. All go in the end: pytest, which
    removes by recursion, could not."""
    deep = folder.joinpath(*("d" * DEPTH))
    here = folder
    try:
        folder.mkdir(exist_ok=True)
        for name in deep.relative_to(folder).parts:
            here = here / name
            os.mkdir(here)
        for name in files:
            (deep / name).write_text("x")
        yield deep
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
