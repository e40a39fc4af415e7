"""Listings: what a source says it holds. One function per kind: class folders, a manifest file, tables.

Each gives `Candidate`s with the label, split and caption that the source claims. Nothing is decoded here; images
are listed lazily, so that a source of any size fits.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.data.candidates import (
    SPLIT_WORDS,
    Candidate,
    Listing,
    ScanOptions,
    is_text,
    known_split,
    path_inside,
    pick_columns,
    read_difficulty,
    read_label,
    read_text,
)
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.errors import UsageError
from dcdm_cli.gate import ClassNames, parse_json, typed

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_SIDECAR_SUFFIXES = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".md"})
_LITTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_BATCH_ROWS = 64
_ROWS = "write a header and rows, path,label, or one object per line"
_AGAIN = "download or write it again"


# Class folders


def list_folder(root: Path, options: ScanOptions) -> Listing:
    """`root[/split]/class/.../image`. Splits are recognised only where all top-level folders have a split's name."""
    if options.score_column or options.caption_column:
        raise UsageError(
            f"{root} is a tree of class folders, which has no columns",
            "name images, captions and scores in a CSV or JSONL file and pass that file",
        )
    tree = _Tree(root, options.follow_links)
    tops = [(SPLIT_WORDS.get(folder.name.casefold()), folder) for folder in tree.folders(root)]
    if not tops or any(split is None for split, _ in tops):
        tops = [(None, root)]
    class_names = {folder.name for _, top in tops for folder in tree.folders(top) if is_text(folder.name)}
    return Listing(_folder_candidates(tree, tops), root, str(root), sorted(class_names), notes=tree.notes)


def holds_images(root: Path, options: ScanOptions) -> bool:
    """Whether there is any image file below the folder."""
    return next(_Tree(root, options.follow_links).images(root), None) is not None


@dataclass
class _Tree:
    """A folder tree seen in name order, without hidden files, litter, devices and, unless `follow`, links."""

    root: Path
    follow: bool
    notes: Counter[str] = field(default_factory=Counter)
    visited: set[tuple[int, int]] = field(default_factory=set)

    def folders(self, top: Path) -> list[Path]:
        return [Path(entry) for entry in self._entries(top) if entry.is_dir(follow_symlinks=self.follow)]

    def images(self, top: Path, *, deep: bool = True) -> Iterator[Path]:
        """Image files by suffix. A folder that cannot be read is given as if it were a file, to be rejected as one."""
        try:
            entries = self._entries(top) if self._is_first_visit(top) else []
        except OSError:
            yield top
            return
        for entry in entries:
            if entry.is_symlink() and not self.follow:
                self.notes["links not followed (--follow-links does)"] += 1
            elif entry.is_dir():
                if deep:
                    yield from self.images(Path(entry))
            elif entry.is_file():
                yield from self._if_image(Path(entry))

    def _entries(self, top: Path) -> list[os.DirEntry[str]]:
        with os.scandir(top) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name not in _LITTER]
        return sorted(kept, key=lambda e: e.name)

    def _is_first_visit(self, folder: Path) -> bool:
        """Each real folder is entered once, so that a loop of links ends."""
        status = folder.stat()
        key = status.st_dev, status.st_ino
        known = key in self.visited
        self.visited.add(key)
        return not known

    def _if_image(self, path: Path) -> Iterator[Path]:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            yield path
        elif suffix not in _SIDECAR_SUFFIXES:
            self.notes["files without an image suffix ignored"] += 1


def _folder_candidates(tree: _Tree, tops: Sequence[tuple[str | None, Path]]) -> Iterator[Candidate]:
    for split, top in tops:
        for path in tree.images(top, deep=False):  # beside the class folders: of no class
            yield _file_candidate(tree, path, None, split)
        for folder in tree.folders(top):
            for path in tree.images(folder):
                yield _file_candidate(tree, path, folder.name, split)


def _file_candidate(tree: _Tree, path: Path, label: str | None, split: str | None) -> Candidate:
    name = path.relative_to(tree.root).as_posix()
    image: Path | RejectedImage = path
    try:
        if not is_text(name):
            raise RejectedImage("bad_name", "the name is not UTF-8")
        if tree.follow:
            path_inside(tree.root, name)
    except RejectedImage as error:
        image = error
    return Candidate(name, image, label, split)


# Manifest files


def list_manifest(file: Path | None, options: ScanOptions) -> Listing:
    """CSV with a header, or JSON lines, with `path` (or `file_name`) and a label per row; None reads standard input.

    Paths are relative to the file's folder, or to the working folder for standard input.
    """
    root = (file.parent if file else Path()).resolve()
    origin = str(root / file.name) if file else "standard input"
    rows = _parse_rows(file or options.standard_input, origin)
    return Listing(_manifest_candidates(rows, root, origin, options), root, origin)


def _parse_rows(file: Path | bytes | None, origin: str) -> Iterator[Mapping[str, Any]]:
    """Rows of CSV or of JSON lines, told apart by the first character. Raises UsageError where the text is neither."""
    try:
        with _open_text(file) as stream:
            first = stream.readline()
            lines = chain([first], stream)
            yield from _json_rows(lines) if first.lstrip().startswith("{") else csv.DictReader(lines)
    except UnicodeDecodeError as error:
        raise UsageError(f"{origin} is not UTF-8: {error}", "save it as UTF-8", file=origin) from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise UsageError(
            f"{origin} is neither CSV with a header nor JSON lines: {error}", _ROWS, file=origin
        ) from error


def _open_text(file: Path | bytes | None) -> TextIO:
    if isinstance(file, Path):
        return file.open(encoding="utf-8-sig", newline="")
    content = sys.stdin.buffer.read() if file is None else file
    return io.StringIO(content.decode("utf-8-sig"), newline="")


def _json_rows(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            yield row


def _manifest_candidates(
    rows: Iterator[Mapping[str, Any]], root: Path, origin: str, options: ScanOptions
) -> Iterator[Candidate]:
    columns: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{origin}, row {number}"
        if not columns:
            path = "path" if "path" in row else "file_name"
            columns = pick_columns(list(row), options, where, path)
        split = row.get("split")
        yield Candidate(
            **_listed_file(row.get(columns["image"]), root),
            label=read_label(row.get(columns["label"]), None),
            split=known_split(str(split), where) if split else None,
            caption=read_text(row.get(columns.get("caption", ""))),
            difficulty=read_difficulty(row.get(columns.get("difficulty", "")), where),
        )


def _listed_file(given: Any, root: Path) -> dict[str, Any]:
    name = given if isinstance(given, str) else ""
    try:
        path = path_inside(root, name)
        return {"name": path.relative_to(root).as_posix(), "image": path}
    except RejectedImage as error:
        return {"name": name, "image": error}


# Tables: Parquet files, datasets on disk


@dataclass(frozen=True)
class Table:
    """read: gives the rows with just the named columns. class_names: of a ClassLabel column, else None."""

    name: str
    split: str | None
    columns: Sequence[str]
    class_names: list[str] | None
    read: Callable[[list[str]], Iterator[Mapping[str, Any]]]


def list_parquet(files: Sequence[Path], root: Path, origin: str, options: ScanOptions) -> Listing:
    """Parquet files with an image column. Files called train*, test*, ... (or in folders of such names) are splits."""
    splits = [split_of_file(file) for file in files] if len(files) > 1 else []
    if not all(splits):
        splits = []
    tables = [_parquet_table(f, s, options) for f, s in zip(files, splits or [None] * len(files), strict=True)]
    return list_tables(tables, root, origin, options, base=files[0].parent.resolve(), files=files)


def list_saved_dataset(folder: Path, root: Path, options: ScanOptions) -> Listing:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    import datasets  # slow to import, and needed for this kind of source only

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise UsageError(f"{folder} is not a readable saved dataset: {error}", _AGAIN, file=folder) from error
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    tables = [
        dataset_table(data, str(name), known_split(str(name), str(folder)) if name else None, options)
        for name, data in parts.items()
    ]
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return list_tables(tables, root, str(folder), options, files=files)


def split_of_file(file: PurePath) -> str | None:
    """The split that a table or tar says it is, by the first word of its name or by its folder's name."""
    first_word = re.split(r"[^a-z]", file.name.casefold(), maxsplit=1)[0]
    return SPLIT_WORDS.get(first_word) or SPLIT_WORDS.get(file.parent.name.casefold())


def _parquet_table(file: Path, split: str | None, options: ScanOptions) -> Table:
    def read(columns: list[str]) -> Iterator[Mapping[str, Any]]:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                    yield from batch.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: texts that are no UTF-8
            raise UsageError(f"{file} is damaged: {error}", _AGAIN, file=file) from error

    try:
        schema = pq.read_schema(file)
        stated = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = stated.get("info", {}).get("features", {}).get(options.label_column, {}).get("names")
        names = None if names is None else list(typed(ClassNames, names))
    except (OSError, ValueError, AttributeError) as error:  # pa.ArrowInvalid is a ValueError
        raise UsageError(f"{file} is not a readable Parquet file: {error}", _AGAIN, file=file) from error
    return Table(file.name, split, schema.names, names, read)


def dataset_table(data: Any, name: str, split: str | None, options: ScanOptions) -> Table:
    """Of a `datasets.Dataset`; images are left encoded."""
    import datasets

    def read(columns: list[str]) -> Iterator[Mapping[str, Any]]:
        chosen = data.select_columns(columns)
        if isinstance(chosen.features[options.image_column], datasets.Image):
            chosen = chosen.cast_column(options.image_column, datasets.Image(decode=False))
        return iter(chosen)

    class_names = getattr(data.features.get(options.label_column), "names", None)
    return Table(name or "rows", split, data.column_names, class_names, read)


def list_tables(
    tables: Sequence[Table],
    root: Path,
    origin: str,
    options: ScanOptions,
    *,
    base: Path | None = None,
    files: Sequence[Path] = (),
) -> Listing:
    """base: folder that image paths inside the table must stay in; None where the table comes with resolved paths."""
    columns = [pick_columns(table.columns, options, table.name, options.image_column) for table in tables]
    names = dict.fromkeys(name for table in tables for name in table.class_names or ())
    rows = (
        _table_candidate(row, f"{table.name}#{number}", table, chosen, base)
        for table, chosen in zip(tables, columns, strict=True)
        for number, row in enumerate(table.read(list(chosen.values())))
    )
    return Listing(rows, root, origin, list(names) or None, tables=files)


def _table_candidate(
    row: Mapping[str, Any], name: str, table: Table, columns: Mapping[str, str], base: Path | None
) -> Candidate:
    value = {role: row[column] for role, column in columns.items()}
    try:
        image = _encoded(value["image"], base)
    except RejectedImage as error:
        image = error
    return Candidate(
        name,
        image,
        read_label(value["label"], table.class_names),
        table.split,
        read_text(value.get("caption")),
        read_difficulty(value.get("difficulty"), name),
    )


def _encoded(value: Any, base: Path | None) -> bytes:
    """The file's bytes, from a {bytes, path} struct, plain bytes or a path."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RejectedImage("not_an_image", "the row holds no image")
    path = Path(value) if base is None else path_inside(base, value)
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise RejectedImage("unreadable", "missing, or not a regular file")
    return path.read_bytes()
