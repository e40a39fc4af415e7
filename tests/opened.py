"""Which files below a folder were opened meanwhile, by any process and any library: Linux's inotify."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READ = 0x1  # IN_ACCESS: bytes were read, not only the file opened
_MAPPED = 0x20  # IN_OPEN: what is mapped into memory is opened only
_IS_FOLDER = 0x40000000


@contextmanager
def opened(root: Path) -> Iterator[set[str]]:
    """Yields a set that is filled when the block ends: names below `root` of files that were there before it began."""
    libc, found, folders = ctypes.CDLL(None, use_errno=True), set[str](), dict[int, Path]()
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    try:
        before = {path for path in root.rglob("*") if path.is_file()}
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            number = libc.inotify_add_watch(descriptor, os.fsencode(folder), _READ | _MAPPED)
            assert number >= 0, os.strerror(ctypes.get_errno())
            folders[number] = folder
        yield found
        found |= {path.relative_to(root).as_posix() for path in _events(descriptor, folders) if path in before}
    finally:
        os.close(descriptor)


def _events(descriptor: int, folders: dict[int, Path]) -> Iterator[Path]:
    while True:
        try:
            block = os.read(descriptor, 2**20)
        except BlockingIOError:
            return
        at = 0
        while at < len(block):
            number, mask, _, length = struct.unpack_from("iIII", block, at)
            assert number in folders, "too many events for the queue"
            name = block[at + 16 : at + 16 + length].rstrip(b"\0")
            if name and not mask & _IS_FOLDER:
                yield folders[number] / os.fsdecode(name)
            at += 16 + length
