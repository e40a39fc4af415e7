"""Images inside tar files, read where they are: nothing is extracted, a member is named by where its bytes lie.

A manifest path of a member is `<tar>#<offset>+<size>/<name>`; the name is for people. Archives are not trusted: only
regular members count, sizes are capped and must lie inside the file, and no member's name is ever used as a path.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dcdm_cli.errors import UsageError

MAX_IMAGE = 256 * 2**20  # bytes
MAX_TEXT = 2**20  # of a .json, .cls or .txt member
_END = bytes(1024)  # two empty blocks
_KEY = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")
_MEMBER = re.compile(r"(?P<tar>.*\.tar)#(?P<offset>[0-9]{1,18})\+(?P<size>[0-9]{1,18})/[^/]*", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """A regular file of a tar. offset, size: of its bytes in the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Place:
    """Where a manifest path of a member points."""

    tar: Path
    offset: int
    size: int


def members(tar: Path) -> Iterator[Member]:
    """Regular members in order, in constant memory. Raises UsageError for what is no plain tar."""
    try:
        # "r:" takes no compressed tar: of those no member has a place from which it could be read.
        with tarfile.open(tar, "r:", errorlevel=0) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would keep them all
                if info.isreg() and not info.issparse():  # the bytes of a sparse file are not in one piece
                    yield Member(info.name, info.offset_data, info.size)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{tar} is not a plain tar file: {error}", "unpack compressed archives (.tar.gz) to .tar first", file=tar
        ) from error


def ends_properly(tar: Path) -> bool:
    """Whether the tar has its end mark: one that was cut between two members reads without an error."""
    with tar.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(_END)))
        return stream.read() == _END


def sample_key(name: str) -> tuple[str, str] | None:
    """(key, suffix) by WebDataset's rule: the name ends at its first dot. None for a name no sample may have."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    if not _KEY.fullmatch(name) or path.is_absolute() or ".." in path.parts or not stem or not dot:
        return None
    return str(path.with_name(stem)), suffix.lower()


def member_path(tar: str, member: Member) -> str:
    """The manifest path of a member of `tar`."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(member.name).name)[-100:]  # from the end: with the suffix
    return f"{tar}#{member.offset}+{member.size}/{name}"


def member_place(path: Path) -> Place | None:
    """None for a path of an ordinary file."""
    text = str(path)
    # most paths have none, and the pattern tries every ".tar" in them
    match = _MEMBER.fullmatch(text) if "#" in text else None
    return Place(Path(match["tar"]), int(match["offset"]), int(match["size"])) if match else None


def read_range(tar: Path, offset: int, size: int, limit: int = MAX_IMAGE) -> bytes:
    """Raises ValueError for a size above the limit or beyond the end of the file, OSError when it cannot be read."""
    if size > limit:
        raise ValueError(f"{size} bytes are more than {limit}")
    if not os.path.isfile(tar):  # opening a FIFO or a device would block
        raise FileNotFoundError(f"{tar} is missing, or not a regular file")
    with tar.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(size)
    if len(content) < size:  # reading beyond the end is no error to the system
        raise ValueError(f"the archive ends {size - len(content)} bytes too early")
    return content


def file_stamp(path: Path) -> tuple[str, int, int]:
    """What tells whether an image changed, without reading it: its path, and size and time of its file."""
    place = member_place(path)
    status = (place.tar if place else path).stat()
    return str(path), status.st_size, status.st_mtime_ns
