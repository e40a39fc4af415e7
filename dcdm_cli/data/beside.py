"""What stands beside images in a folder tree: caption files, and `metadata.jsonl` or `metadata.csv` in the layout of
`datasets`' ImageFolder and of trainers that read captions from it.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdm_cli.data.archives import MAX_TEXT
from dcdm_cli.data.candidates import ScanOptions, headless, read_difficulty, read_label, read_text
from dcdm_cli.data.lists import parse_rows
from dcdm_cli.errors import UsageError

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = (".txt", ".caption")
_NAME_COLUMNS = ("file_name", "path")
_CAPTION_COLUMNS = ("caption", "text")
_LABEL_COLUMNS = ("class_name", "label")
_SHARED = "images that share a caption file with the one before, by a name that differs in its ending alone"
_NUMBERS = re.compile(r"[\s0-9.,;:eE+-]*")  # boxes and other annotations, which are no captions


@dataclass(frozen=True)
class Known:
    """What is said of an image beside it. label: what counts; bare_label: what counts where no folder says it."""

    label: str | None = None
    bare_label: str | None = None
    caption: str | None = None
    difficulty: float | None = None


NOTHING = Known()


def has_metadata(folder: Path) -> bool:
    return any((folder / name).is_file() for name in METADATA_FILES)


class Beside:
    """Metadata files are read once, when the first image of their folder is asked for: about 300 bytes per row."""

    def __init__(self, root: Path, options: ScanOptions) -> None:
        self.root, self.options = root, options
        self._tables: dict[Path, dict[str, Known]] = {}
        self._last: Path | None = None  # caption file

    @property
    def names_classes(self) -> bool:
        """Whether a column was named that holds the classes: it then counts instead of the folders' names."""
        return self.options.label_column != "label"

    def of(self, path: Path, notes: Counter[str]) -> Known:
        """What the metadata of the nearest folder up to the root says, else the image's caption file."""
        row = self._row(path)
        if row.caption or not self.options.caption_files:
            return row
        return replace(row, caption=self._caption_file(path, notes))

    def _caption_file(self, path: Path, notes: Counter[str]) -> str | None:
        """The first line; trainers read further ones as alternatives."""
        for suffix in CAPTION_SUFFIXES:
            file = path.with_suffix(suffix)
            if file.is_file():
                text = _first_line(file)
                if text and not _NUMBERS.fullmatch(text):
                    if file == self._last:  # a.jpg and a.png: they are listed one after the other
                        notes[_SHARED] += 1
                    self._last = file
                    return text
                notes["text files beside images that hold no caption"] += 1
        return None

    def _row(self, path: Path) -> Known:
        folder = path.parent
        while True:
            table = self._table(folder)
            row = table.get(path.relative_to(folder).as_posix()) if table else None
            if row is not None:
                return row
            if folder in (self.root, folder.parent):  # folder.parent: of "/", which is its own
                return NOTHING
            folder = folder.parent

    def _table(self, folder: Path) -> dict[str, Known]:
        if folder not in self._tables:
            found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
            self._tables[folder] = self._read(found[0]) if found else {}
        return self._tables[folder]

    def _read(self, file: Path) -> dict[str, Known]:
        table, columns = {}, None
        for number, row in enumerate(parse_rows(file, str(file)), 1):
            columns = columns or _columns(row, self.options, file)
            name = row.get(columns["name"])
            if isinstance(name, str):
                known = self._known(row, columns, f"{file}, row {number}")
                # as `relative_to` spells the names that are looked up
                table[name.removeprefix("./")] = known
                # as Windows writes them; a file that is really called so has its own row
                table.setdefault(name.replace("\\", "/").removeprefix("./"), known)
        return table

    def _known(self, row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Known:
        cell = {role: row.get(column) for role, column in columns.items()}
        score = read_difficulty(cell.get("difficulty"), where) if "difficulty" in columns else None
        label, bare_label = (read_label(cell.get(role), None) for role in ("label", "bare_label"))
        return Known(label, bare_label, read_text(cell.get("caption")), score)


def _first_line(file: Path) -> str | None:
    """None for what is no text."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_TEXT)
        # -sig: some editors put a mark first; not final where it may have been cut inside of a character
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) < MAX_TEXT)
    except (OSError, ValueError):
        return None
    return read_text(next((line for line in text.splitlines() if line.strip()), None))


def _columns(row: Mapping[str, Any], options: ScanOptions, file: Path) -> dict[str, str]:
    """Role -> column."""
    name = next((column for column in _NAME_COLUMNS if column in row), None)
    wanted = {"caption": options.caption_column, "difficulty": options.score_column}
    if options.label_column != "label":  # the default is no wish: folders name the classes then
        wanted["label"] = options.label_column
    missing = [column for column in wanted.values() if column and column not in row]
    if name is None or missing:
        lacking = ", ".join(missing) or " or ".join(_NAME_COLUMNS)
        raise UsageError(
            f"{file} has no column {lacking}; it has {', '.join(map(str, row))}",
            f"{headless(list(row))}name the columns with --label-column, --caption-column and --column (scores)",
            file=file,
        )
    found = {role: column for role, column in wanted.items() if column}
    usual = {"caption": _CAPTION_COLUMNS, "bare_label": _LABEL_COLUMNS}
    there = {role: next((column for column in columns if column in row), None) for role, columns in usual.items()}
    return {"name": name} | {role: column for role, column in there.items() if column} | found
