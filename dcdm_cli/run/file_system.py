"""What a folder's file system can do, found by doing it: write, fsync, rename over a file, lock."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dcdm_cli.files import PART_SUFFIX

PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileSystem:
    """folder: the nearest one that exists. free, total: bytes. ms: milliseconds of each step that worked.

    failed: the first step that did not, with the system's words; "" = all worked.
    """

    folder: Path
    free: int
    total: int
    ms: dict[str, float]
    failed: str = ""


def probe_file_system(path: Path) -> FileSystem:
    """Writes one megabyte into a hidden folder of its own, and takes it away again; one that a kill left is swept like
    any other leftover. Never raises OSError."""
    # A run folder that is asked about need not be there yet.
    folder = next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
    usage, ms = shutil.disk_usage(folder), dict[str, float]()
    try:
        place = Path(tempfile.mkdtemp(PART_SUFFIX, ".dcdm-doctor-", folder))
    except OSError as error:
        return FileSystem(folder, usage.free, usage.total, ms, f"write: {error.strerror}")
    try:
        for step, work in (("write", _write), ("fsync", _sync), ("rename", _rename), ("flock", _lock)):
            clock = time.perf_counter()
            try:
                work(place)
            except (OSError, Timeout) as error:
                failed = f"{step}: {getattr(error, 'strerror', None) or error}"
                return FileSystem(folder, usage.free, usage.total, ms, failed)
            ms[step] = round(1000 * (time.perf_counter() - clock), 2)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return FileSystem(folder, usage.free, usage.total, ms)


def open_file_limits() -> tuple[int, int]:
    """(soft, hard); a limit that there is not is the largest number that fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = 2**63 - 1
    return (
        endless if soft == resource.RLIM_INFINITY else soft,
        endless if hard == resource.RLIM_INFINITY else hard,
    )


def _write(place: Path) -> None:
    (place / "new").write_bytes(os.urandom(PROBE_BYTES))


def _sync(place: Path) -> None:
    for path, how in ((place / "new", os.O_RDWR), (place, os.O_RDONLY)):  # a folder cannot be opened for writing
        descriptor = os.open(path, how)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    os.replace(place / "new", place / "old")
    if (place / "old").stat().st_size != PROBE_BYTES:
        raise OSError(0, "the old file is still there after a rename over it")


def _lock(place: Path) -> None:
    """A lock that is held keeps a second one out."""
    with FileLock(place / "lock"):
        second = FileLock(place / "lock", thread_local=False)
        try:
            second.acquire(timeout=0)
        except Timeout:
            return
        second.release()
        raise OSError(0, "a lock that is held does not keep others out")
