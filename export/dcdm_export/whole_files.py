"""Files that belong together appear whole or not at all: written to a folder beside their place, then moved."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART_SUFFIX = ".part"


@contextmanager
def whole_files(folder: Path, *, last: str | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder in `folder`; when the block ends well, its files are moved into `folder`.

    Files of the same names are replaced. last: the file moved after all others, whose presence then says that they are
    there. When the block fails, or the process dies in it, `folder` is as it was (a killed process leaves a `.part`
    folder); one that dies while files are moved leaves some of them moved, without the last one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=PART_SUFFIX) as name:
        part = Path(name)
        yield part
        for file in sorted(part.iterdir(), key=lambda file: (file.name == last, file.name)):
            # content before name: after a power cut no name must stand for half a file
            _sync(file)
            os.replace(file, folder / file.name)
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
