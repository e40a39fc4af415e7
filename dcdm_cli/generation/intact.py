"""Files of finished shards, held against what their ledger says of them: an image of a folder, a shard's archive.

Size is compared always, content where the file was changed after its shard was published: whoever writes into it later
gives it a later time. A folder that was copied with new times is read once per look, and refused for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dcdm_export.signature import digest


@dataclass(frozen=True)
class Written:
    """A file as it was made. path: below the generated folder; bytes, sha256 (64 hex digits): of its content."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Fault:
    """What became of a file. lost: it holds nothing any more, and is made again without a question."""

    path: str
    said: str
    lost: bool = False

    def __str__(self) -> str:
        return f"{self.path} {self.said}"


def faults_of(root: Path, files: Iterable[Written], published_ns: int, *, verify: bool = False) -> Iterator[Fault]:
    """Of the files that are not what was made, in their order. published_ns: when the last of them was in its place.
    verify: read those too that nobody has touched since."""
    for file in files:
        try:
            fault = _fault(root / file.path, file, published_ns, verify)
        except (FileNotFoundError, NotADirectoryError):
            fault = Fault(file.path, "is gone", lost=True)
        if fault is not None:
            yield fault


def _fault(file: Path, was: Written, published_ns: int, verify: bool) -> Fault | None:
    there = file.stat()
    # images are not flushed one by one, so this is what a power cut leaves; nobody has anything to lose in it
    if not there.st_size and was.bytes:
        return Fault(was.path, "is empty", lost=True)
    if there.st_size != was.bytes:
        return Fault(was.path, f"has {there.st_size} bytes instead of {was.bytes}")
    unread = not verify and there.st_mtime_ns <= published_ns
    return None if unread or digest(file) == was.sha256 else Fault(was.path, "has other content")
