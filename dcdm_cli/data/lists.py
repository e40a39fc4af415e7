"""Lists of images: CSV with a header, or JSON lines. Nothing is decoded here, and rows are read as they are needed."""

from __future__ import annotations

import codecs
import csv
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from dcdm_cli.data.candidates import (
    NO_LABEL,
    Candidate,
    Listing,
    ScanOptions,
    path_inside,
    pick_columns,
    read_difficulty,
    read_label,
    read_text,
)
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.data.split_names import split_of
from dcdm_cli.errors import UsageError

PATH_COLUMNS = ("path", "file_name", "image")  # looked for in this order, unless --image-column names another
_DELIMITERS = ",;\t|"
_ROWS = "write a header and rows, path,label, or one object per line"


def list_manifest(file: Path | None, options: ScanOptions) -> Listing:
    """CSV with a header, or JSON lines, with a path and a label per row; None reads standard input.

    Paths are relative to `options.image_root`, else to the file's folder, or to the working folder for standard input,
    and must stay inside it. A column `split` says which split a row is.
    """
    home = (file.parent if file else Path()).resolve()
    root = options.image_root.expanduser().resolve() if options.image_root else home
    origin = str(home / file.name) if file else "standard input"
    notes: Counter[str] = Counter()
    rows = parse_rows(file or options.standard_input, origin, notes)
    candidates = _candidates(rows, root, origin, options)
    return Listing(candidates, root, origin, notes=notes, split_origin="column 'split'", no_label=NO_LABEL)


def parse_rows(
    file: Path | bytes | None, origin: str, notes: Counter[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Rows of CSV or of JSON lines, told apart by the first character; None reads standard input. notes: told of a
    delimiter other than the comma. Raises UsageError where the text is neither, or names a column twice."""
    try:
        with _open_text(file) as stream:
            first = stream.readline()
            if "\0" in first:  # letters of UTF-16 are letters of UTF-8 too, with zeros between them
                raise not_utf8(first.encode(), file, origin)
            lines = chain([first], stream)
            yield from _json_rows(lines) if first.lstrip().startswith("{") else _csv_rows(first, lines, notes)
    except UnicodeDecodeError as error:
        raise not_utf8(error.object, file, origin) from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise UsageError(
            f"{origin} is neither CSV with a header nor JSON lines: {error}", _ROWS, file=origin
        ) from error


def not_utf8(content: bytes, file: Path | bytes | None, origin: str) -> UsageError:
    """content: what could not be read. file: None or bytes for standard input."""
    encoding = _encoding(content)
    hint = f"convert it on its way: iconv -f {encoding} -t UTF-8 FILE | dcdm score -"
    if isinstance(file, Path):
        old, new = (shlex.quote(str(name)) for name in (file, file.with_stem(f"{file.stem}-utf8")))
        hint = f"save it as UTF-8: iconv -f {encoding} -t UTF-8 {old} > {new}"
    return UsageError(f"{origin} is not UTF-8: it looks like {encoding}", hint, file=origin)


def _encoding(content: bytes) -> str:
    """As iconv calls it: what spreadsheets write besides UTF-8."""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "UTF-16"  # iconv looks at the mark too
    if b"\0" in content:
        return "UTF-16BE" if content.startswith(b"\0") else "UTF-16LE"
    return "WINDOWS-1252"


def _csv_rows(header: str, lines: Iterable[str], notes: Counter[str] | None) -> Iterator[Mapping[str, Any]]:
    """The delimiter is the one that the header has most of."""
    delimiter = max(_DELIMITERS, key=header.count)
    if delimiter != "," and header.count(delimiter) and notes is not None:
        notes[f"list read with {delimiter!r} between its columns"] = 1
    reader = csv.DictReader(lines, delimiter=delimiter if header.count(delimiter) else ",")
    twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1 and name]
    if twice:
        raise ValueError(f"the header names {', '.join(map(repr, twice))} twice")
    yield from reader


def _open_text(file: Path | bytes | None) -> TextIO:
    if isinstance(file, Path):
        return file.open(encoding="utf-8-sig", newline="")  # newline: csv wants line ends as they are
    content = sys.stdin.buffer.read() if file is None else file
    return io.StringIO(content.decode("utf-8-sig"), newline="")


def _json_rows(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            yield row


def _candidates(
    rows: Iterator[Mapping[str, Any]], root: Path, origin: str, options: ScanOptions
) -> Iterator[Candidate]:
    columns: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{origin}, row {number}"
        if not columns:
            named = [name for name in row if name]  # the index of a data frame has a column without a name
            columns = pick_columns(named, options, where, _path_column(named, options))
        cell = {role: row.get(column) for role, column in columns.items()}
        word = row.get("split")
        split = split_of(str(word), options.split, options.split_map, where) if word else None
        if word and split is None:
            continue
        yield Candidate(
            **_listed_file(cell["image"], root),
            label=read_label(cell["label"], None),
            split=split,
            caption=read_text(cell.get("caption")),
            difficulty=read_difficulty(cell.get("difficulty"), where),
        )


def _path_column(available: Sequence[str], options: ScanOptions) -> str:
    if options.image_column != "image":
        return options.image_column
    return next((name for name in PATH_COLUMNS if name in available), PATH_COLUMNS[0])


def _listed_file(given: Any, root: Path) -> dict[str, Any]:
    name = given if isinstance(given, str) else ""
    try:
        path = path_inside(root, name)
        return {"name": path.relative_to(root).as_posix(), "image": path}
    except RejectedImage as error:
        if error.reason == "outside_root" and "://" not in name:  # to a URL the remedy is said already
            error = RejectedImage(error.reason, f"{error.detail}; --image-root names the folder that holds the images")
        return {"name": name, "image": error}
