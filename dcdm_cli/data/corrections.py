"""Images to leave out and labels to change, from a CSV that a person has gone through (`dcdm review` writes one)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.data.cells import unguarded
from dcdm_cli.data.lists import not_utf8
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.gate import shorten
from dcdm_cli.run.origins import nearest

DROP, RELABEL, SOURCE, REAL = "drop", "new_label", "source", "real"
NO = ("", "0", "no", "n", "false", "-")
EXAMPLE = "a CSV with a column `sample_id` or `path`; see review/review.csv, which dcdm review writes"


@dataclass(frozen=True)
class Corrected:
    """manifest: after the corrections. sentences: what was done, for the person watching."""

    manifest: Manifest
    sentences: tuple[str, ...]


def correct(manifest: Manifest, drop: Path | None, relabel: Path | None) -> Corrected:
    """First labels, then images. No file, nothing done.

    drop: rows whose column `drop` says so; in a file without that column, every row. relabel: rows with a class name in
    `new_label`. Rows of generated images (`source` not "real") are passed over. Raises NotFoundError, or UsageError for
    a file that is no such table, an unknown class, or rows that name none of the images.
    """
    said = []
    if relabel is not None:
        manifest, sentence = _relabelled(manifest, relabel)
        said.append(sentence)
    if drop is not None:
        manifest, sentence = _dropped(manifest, drop)
        said.append(sentence)
    return Corrected(manifest, tuple(said))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows about real images, by column name. Semicolons and tabs separate columns too, as spreadsheets write."""
    try:
        text = path.read_text("utf-8-sig")  # -sig: spreadsheets put a mark first
        first = text.split("\n", 1)[0]
        separator = max(",;\t", key=first.count)
        # newline: csv wants line ends as they are. restval: cells that a short row lacks.
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval=""))
    except FileNotFoundError as error:
        raise NotFoundError(f"no list of corrections at {path}", f"write {EXAMPLE}", file=path) from error
    except UnicodeDecodeError as error:
        raise not_utf8(error.object, path, str(path)) from error
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}", f"write {EXAMPLE}", file=path) from error
    if rows and not {"sample_id", "path"} & set(rows[0]):
        raise UsageError(f"{path} names no images: its columns are {', '.join(map(str, rows[0]))}", EXAMPLE, file=path)
    return [_plain(row) for row in rows if (row.get(SOURCE) or REAL) == REAL]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """As it was before `guarded`; what csv keeps of a row that is too long is a list."""
    return {name: unguarded(cell) if isinstance(cell, str) else cell for name, cell in row.items()}


def _relabelled(manifest: Manifest, path: Path) -> tuple[Manifest, str]:
    rows = read_rows(path)
    if rows and RELABEL not in rows[0]:
        raise UsageError(f"{path} has no column {RELABEL!r}", "name the right class of each image in it", file=path)
    chosen = [row for row in rows if (row[RELABEL] or "").strip()]
    known = {name: label for label, name in enumerate(manifest.class_names)}
    for row in chosen:
        if row[RELABEL].strip() not in known:
            hint = nearest(row[RELABEL].strip(), list(known)[:1000])  # difflib compares with every one of them
            raise UsageError(f"{path}: there is no class {shorten(row[RELABEL])}", hint, file=path)
    labels, names = manifest.column("label").copy(), manifest.column("class_name").copy()
    found = _found(manifest, chosen, path)
    changed = 0
    for position, row in found.items():
        name = row[RELABEL].strip()
        changed += labels[position] != known[name]
        labels[position], names[position] = known[name], name
    columns = {"label": labels.astype(np.int32), "class_name": names.tolist()}
    return manifest.with_columns(columns), f"{path.name}: {changed} labels changed{_rest(chosen, found)}"


def _dropped(manifest: Manifest, path: Path) -> tuple[Manifest, str]:
    rows = read_rows(path)
    chosen = (
        [row for row in rows if (row.get(DROP) or "").strip().lower() not in NO] if rows and DROP in rows[0] else rows
    )
    found = _found(manifest, chosen, path)
    keep = np.ones(len(manifest), bool)
    keep[list(found)] = False
    if not keep.any():
        raise UsageError(f"{path} leaves out every image", "mark only those that are to go", file=path)
    return manifest.select(keep), f"{path.name}: {len(found)} images left out{_rest(chosen, found)}"


def _found(manifest: Manifest, rows: list[dict[str, str]], path: Path) -> dict[int, Mapping[str, str]]:
    """Position -> row, by id where there is one, else by path."""
    # Both spellings: dcdm review writes whole paths, a person perhaps those of the source.
    places = {str(place): i for i, place in enumerate(manifest.paths())}
    places |= {name: i for i, name in enumerate(manifest.table["path"].to_pylist())}
    ids = {name: i for i, name in enumerate(manifest.column("sample_id").tolist())}
    found: dict[int, Mapping[str, str]] = {}
    for row in rows:
        position = ids.get((row.get("sample_id") or "").strip(), places.get((row.get("path") or "").strip()))
        if position is not None:
            found[position] = row
    if rows and not found:
        raise UsageError(f"none of the {len(rows)} rows of {path} names an image of this source", EXAMPLE, file=path)
    return found


def _rest(rows: list[dict[str, str]], found: Mapping[int, object]) -> str:
    missing = len(rows) - len(found)
    return f"; {missing} rows name no image of this source, or one that was named before" if missing else ""
