"""A folder tree seen in name order: what in it can hold images of the source's, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
GENERATED_MARK = "shards/output.json"
_SIDECAR_SUFFIXES = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".md"})
_READ_SUFFIXES = IMAGE_SUFFIXES | _SIDECAR_SUFFIXES | {".parquet", ".tar"}
_LITTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini", ".DS_Store"})
OWN = "folders of dcdm's own (run folders, generated sets) passed over"


def is_run_folder(folder: Path) -> bool:
    """Whether a command of ours writes, or has written, its results there."""
    if (folder / ".lock.json").is_file():
        return True
    if (folder / "records").is_dir() and any((folder / name).is_file() for name in ("dcdm.toml", ".lock")):
        return True
    # of a first run that was stopped: nothing is recorded yet
    return (folder / ".lock").is_file() and (folder / "checkpoints").is_dir()


def lies_in_own_folder(file: Path, depth: int) -> bool:
    """Whether a folder on the way to the file is one of ours; the first `depth` parts were named and do not count."""
    return any(_is_ours(folder) for folder in file.parents if len(folder.parts) > depth)


def is_excluded(path: str, patterns: tuple[str, ...]) -> bool:
    """path: POSIX, below the source. A pattern matches the whole path, one of its folders, or the last name."""
    parts = path.split("/")
    heads = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    # not fnmatch: case counts on every system
    return any(fnmatchcase(text, pattern.rstrip("/")) for pattern in patterns for text in (*heads, *parts))


@dataclass
class Tree:
    """Below `root`, without hidden files, litter, devices, what `exclude` names, folders of our own and, unless
    `follow`, links.

    notes: what was passed over by `images`, and how often.
    """

    root: Path
    follow: bool = False
    exclude: tuple[str, ...] = ()
    notes: Counter[str] = field(default_factory=Counter)
    visited: set[tuple[int, int]] = field(default_factory=set)

    def folders(self, top: Path) -> list[Path]:
        return [Path(entry) for entry in self._kept(top) if entry.is_dir(follow_symlinks=self.follow)]

    def filled(self, top: Path) -> list[Path]:
        """The folders in `top` that have an image, at any depth."""
        return [folder for folder in self.folders(top) if self.has_images(folder)]

    def has_images(self, top: Path) -> bool:
        """Also for a folder that cannot be read: it is listed, to be rejected."""
        return self.has_own_images(top) or next(self._probe().images(top), None) is not None

    def has_own_images(self, top: Path) -> bool:
        """Whether there are images in the folder itself."""
        return next(self._probe().images(top, deep=False), None) is not None

    def images(self, top: Path, *, deep: bool = True) -> Iterator[Path]:
        """Image files by suffix. A folder that cannot be read is given as if it were a file, to be rejected as one."""
        return self._walk(top, self._is_image, deep=deep)

    def files(self, suffixes: Set[str]) -> Iterator[Path]:
        """Files of these suffixes below the root, and links to such: a cache of downloads is made of them."""
        return self._walk(self.root, lambda path: path.suffix.lower() in suffixes, linked=True)

    def ignored(self) -> Counter[str]:
        """Suffixes, in lower case, of the files that are neither images nor beside such, and how many there are."""
        others = self._probe()._walk(self.root, lambda path: path.suffix.lower() not in _READ_SUFFIXES)
        return Counter(path.suffix.lower() for path in others)

    def _walk(
        self, top: Path, wanted: Callable[[Path], bool], *, deep: bool = True, linked: bool = False
    ) -> Iterator[Path]:
        """linked: links to files are taken for files."""
        try:
            entries = self._kept(top, count=True) if self._is_first_visit(top) else []
        except OSError:
            yield top
            return
        for entry in entries:
            if entry.is_symlink() and not self.follow and not (linked and entry.is_file()):
                self.notes["links not followed (--follow-links does)"] += 1
            elif entry.is_dir():
                if deep:
                    yield from self._walk(Path(entry), wanted, linked=linked)
            elif entry.is_file() and wanted(Path(entry)):
                yield Path(entry)

    def _probe(self) -> Tree:
        """A look ahead must not count, nor mark folders as visited."""
        return Tree(self.root, self.follow, self.exclude)

    def _kept(self, top: Path, *, count: bool = False) -> list[os.DirEntry[str]]:
        with os.scandir(top) as entries:
            # Systems list folders in any order, and a scan that goes on counts on the same one.
            found = sorted(entries, key=lambda entry: entry.name)
        kept = []
        for entry in found:
            reason = self._passed_over(entry)
            if reason is None:
                kept.append(entry)
            elif reason and count:
                self.notes[reason] += 1
        return kept

    def _passed_over(self, entry: os.DirEntry[str]) -> str | None:
        """Why; "" where nobody wants to know; None: it is kept."""
        if entry.name in _LITTER:
            return ""
        if entry.is_symlink() and not os.path.exists(entry):  # whose target is gone, or that goes round in a circle
            return "links that lead nowhere passed over"
        if entry.name.startswith("."):
            could_hold = entry.is_dir() or Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
            return "hidden files and folders passed over" if could_hold else ""
        if self.exclude and is_excluded(Path(entry).relative_to(self.root).as_posix(), self.exclude):
            return "files and folders left out by --exclude"
        return OWN if entry.is_dir() and _is_ours(Path(entry)) else None

    def _is_first_visit(self, folder: Path) -> bool:
        """Each real folder is entered once, so that a loop of links ends."""
        status = folder.stat()
        key = status.st_dev, status.st_ino
        known = key in self.visited
        self.visited.add(key)
        return not known

    def _is_image(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return True
        if suffix not in _SIDECAR_SUFFIXES:
            self.notes["files without an image suffix ignored"] += 1
        return False


def _is_ours(folder: Path) -> bool:
    try:
        return is_run_folder(folder) or (folder / GENERATED_MARK).is_file()
    except OSError:  # it cannot be read, which `images` says
        return False
