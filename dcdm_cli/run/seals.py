"""Seals: what a file was when a stage read or wrote it. From them comes whether a stage is fresh and a file damaged.

A seal is size, time of change and hash. Where size and time are as they were the hash is believed, except of weights
and JSON of the run folder, whose content is compared every time. So a run folder that was copied, with new times, is
still the same. A base model of the user's own has gigabytes, is named by absolute paths, and is believed like the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import hash_file, walk, write_json
from dcdm_cli.gate import Count, Digest, read_document

SEAL_SUFFIX = ".seal"
BY_CONTENT = (".safetensors", ".json")
# Nothing is made from these: figures, tables and logs are drawn anew, and a card is the user's to edit.
FOR_PEOPLE = ("figures", "tables", "logs", "README.md")


@dataclass(frozen=True)
class Seal:
    """size: bytes. mtime_ns: time of the last change. sha256: the first 32 hex digits."""

    size: Count
    mtime_ns: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    sha256: Digest

    def same(self, other: Seal) -> bool:
        """Whether both stand for the same content."""
        return (self.size, self.sha256) == (other.size, other.sha256)


def is_for_people(name: str) -> bool:
    """Of a file's name below the run folder."""
    return not set(FOR_PEOPLE).isdisjoint(Path(name).parts)


def seal(path: Path, known: Iterable[Seal] = (), *, by_content: bool = True) -> Seal:
    """known: earlier seals of this file, to be believed where size and time agree. by_content: but not of weights and
    JSON. Raises OSError."""
    stat = path.stat()
    if not (by_content and path.suffix in BY_CONTENT):
        for one in known:
            if (one.size, one.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                return one
    return Seal(stat.st_size, stat.st_mtime_ns, hash_file(path))


def seal_all(root: Path, places: Iterable[Path], known: Mapping[str, list[Seal]] | None = None) -> dict[str, Seal]:
    """Name below `root` -> seal, of files and of all files below folders. What lies elsewhere, what is not there and
    what is for people only is left out. known: earlier seals by name."""
    found = {}
    for file in _files(places):
        name = os.path.relpath(file, root)  # not relative_to, which raises for what lies elsewhere
        if not name.startswith("..") and not is_for_people(name):
            found[Path(name).as_posix()] = seal(file, (known or {}).get(Path(name).as_posix(), ()))
    return found


def outside(seals: Mapping[str, Seal]) -> dict[str, Seal]:
    """Of the files that a record names, those of the user's own base model."""
    return {name: was for name, was in seals.items() if Path(name).is_absolute()}


def seal_outside(files: Iterable[Path]) -> dict[str, Seal]:
    """By absolute path; what is not there is left out."""
    return {str(file.absolute()): seal(file) for file in files if file.is_file()}


def change(path: Path, was: Seal, *, by_content: bool = True) -> str:
    """How a file differs from what it was; empty where it does not. by_content: as in `seal`."""
    if not path.is_file():
        return "is gone"
    try:
        if (size := path.stat().st_size) != was.size:
            return f"has {size:,} bytes and had {was.size:,}"
        return "" if seal(path, (was,), by_content=by_content).same(was) else "has other content than it had"
    except OSError:  # it went between the two looks
        return "is gone"


def change_of(root: Path, name: str, was: Seal) -> str:
    """`change` of a file by the name that a record has for it."""
    return change(root / name, was, by_content=not Path(name).is_absolute())


def seal_beside(file: Path) -> None:
    """For a file of a cache, which no stage's record names: its seal in a file of its own."""
    write_json(file.with_suffix(SEAL_SUFFIX), asdict(seal(file)))


def change_beside(file: Path) -> str:
    """How a cached file differs from its seal; empty where it does not. One without a seal, from before there were any
    or from a process that was killed in between, is sealed now: to make it again could take hours."""
    note = file.with_suffix(SEAL_SUFFIX)
    if not file.is_file():
        return "is gone"
    if not note.is_file():
        seal_beside(file)
    try:
        return change(file, read_document(note, Seal, ""))
    except MismatchError:
        return "has a damaged seal"


def seal_files(folder: Path) -> None:
    """For a folder that a stopped stage goes on from: the seals of its files, beside it."""
    seals = {name: asdict(one) for name, one in seal_all(folder, [folder]).items()}
    write_json(folder.with_suffix(SEAL_SUFFIX), seals)


def change_of_files(folder: Path) -> str:
    """How a folder differs from what `seal_files` sealed; empty where it does not. One without seals, from before there
    were any, is believed."""
    note = folder.with_suffix(SEAL_SUFFIX)
    if not folder.is_dir():
        return "is gone"
    try:
        sealed = read_document(note, dict[str, Seal], "") if note.is_file() else {}
    except MismatchError:
        return "has damaged seals"
    changed = ((name, change(folder / name, was)) for name, was in sealed.items())
    return next((f"is damaged: {name} {said}" for name, said in changed if said), "")


def is_whole(file: Path) -> bool:
    """Whether what a stopped stage goes on from holds what `seal_beside` sealed, by its content every time. Unlike a
    cache's, one without a seal does not count: it takes seconds to make again."""
    try:
        return hash_file(file) == read_document(file.with_suffix(SEAL_SUFFIX), Seal, "").sha256
    except (OSError, NotFoundError, MismatchError):
        return False


def _files(places: Iterable[Path]) -> Iterator[Path]:
    """Temporary files, whose names begin with a dot, are nobody's."""
    for place in places:
        if place.is_file():
            yield place
        elif place.is_dir():
            seen = walk(place, enter=_is_shown)
            yield from sorted(Path(entry.path) for entry in seen if _is_shown(entry) and entry.is_file())


def _is_shown(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")
