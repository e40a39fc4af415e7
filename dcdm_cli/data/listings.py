"""Tables with images in them: Parquet files and datasets on disk, as `Candidate`s.

Nothing is decoded here; rows are read as they are needed, so that a source of any size fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.data.candidates import (
    NO_LABEL,
    Candidate,
    Listing,
    ScanOptions,
    path_inside,
    pick_columns,
    quoted,
    read_difficulty,
    read_label,
    read_text,
)
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.data.split_names import split_of, splits_of_files
from dcdm_cli.errors import UsageError
from dcdm_cli.gate import ClassNames, parse_json, typed

_BATCH_ROWS = 64
_AGAIN = "download or write it again"


@dataclass(frozen=True)
class RowSource:
    """read: gives the rows with just the named columns; rows: how many. class_names: of a ClassLabel column."""

    name: str
    split: str | None
    columns: Sequence[str]
    class_names: list[str] | None
    read: Callable[[list[str]], Iterator[Mapping[str, Any]]]
    rows: int


def list_parquet(files: Sequence[Path], root: Path, origin: str, options: ScanOptions) -> Listing:
    """Parquet files with an image column. Files called train*, test*, ... (or in folders of such names) are splits."""
    splits, are_splits = splits_of_files(files, options.split, options.split_map)
    read = [(file, split) for file, split in zip(files, splits, strict=True) if split or not are_splits]
    _check_chosen(read, options, [file.name for file in files])
    tables = [_parquet_table(file, split, options) for file, split in read]
    listing = list_tables(tables, root, origin, options, base=files[0].parent.resolve(), files=files)
    return replace(listing, split_origin="names of files" if are_splits else "")


def list_saved_dataset(folder: Path, root: Path, options: ScanOptions) -> Listing:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    import datasets  # slow to import, and needed for this kind of source only

    try:
        found = datasets.load_from_disk(str(folder))
        parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        files = _saved_files(folder, [str(name) for name in parts])
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise UsageError(f"{folder} is not a readable saved dataset: {error}", _AGAIN, file=folder) from error
    splits = {str(name): split_of(str(name), options.split, options.split_map, str(folder)) for name in parts if name}
    read = [(name, data) for name, data in parts.items() if not name or splits[str(name)]]
    _check_chosen(read, options, list(splits))
    tables = [dataset_table(data, str(name), splits.get(str(name)), options) for name, data in read]
    listing = list_tables(tables, root, str(folder), options, files=files)
    return replace(listing, split_origin=f"the dataset's own splits {quoted(list(splits))}" if splits else "")


def _saved_files(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Of a dataset that could be read, the files it is made of. A run folder or what `Dataset.map` keeps may lie beside
    them; the sizes and times of these tell `sources.fingerprint` whether the dataset is another."""
    found = [folder / "dataset_dict.json"]
    for place in (folder / part for part in parts):
        state = parse_json((place / "state.json").read_bytes())
        data = [place / str(one["filename"]) for one in state["_data_files"]]
        found += [place / "state.json", place / "dataset_info.json", *data]
    return sorted(file for file in found if file.is_file())


def _check_chosen(read: Sequence[Any], options: ScanOptions, names: Sequence[str]) -> None:
    if not read:
        raise UsageError(
            f"{options.split!r} is not a split of this source, which has {quoted(names)}",
            "name one of them with --split" if options.split else "leave fewer of them out with --split-map",
        )


def has_images(file: Path, options: ScanOptions) -> bool:
    """Whether a Parquet file has the image column; False also for one that cannot be read."""
    try:
        return options.image_column in pq.read_schema(file).names
    except (OSError, ValueError):
        return False


def _parquet_table(file: Path, split: str | None, options: ScanOptions) -> RowSource:
    def read(columns: list[str]) -> Iterator[Mapping[str, Any]]:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                    yield from batch.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: texts that are no UTF-8
            raise UsageError(f"{file} is damaged: {error}", _AGAIN, file=file) from error

    try:
        described = pq.read_metadata(file)
        schema = described.schema.to_arrow_schema()
        stated = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        # where `datasets` keeps the names of a ClassLabel
        names = stated.get("info", {}).get("features", {}).get(options.label_column, {}).get("names")
        names = None if names is None else list(typed(cast(Any, ClassNames), names))
    except (OSError, ValueError, AttributeError) as error:  # pa.ArrowInvalid is a ValueError
        raise UsageError(f"{file} is not a readable Parquet file: {error}", _AGAIN, file=file) from error
    return RowSource(file.name, split, schema.names, names, read, described.num_rows)


def dataset_table(data: Any, name: str, split: str | None, options: ScanOptions) -> RowSource:
    """Of a `datasets.Dataset`; images are left encoded."""
    import datasets

    def read(columns: list[str]) -> Iterator[Mapping[str, Any]]:
        chosen = data.select_columns(columns)
        if isinstance(chosen.features[options.image_column], datasets.Image):
            # encoded: files are kept as they came, and a bad one is rejected by its row
            chosen = chosen.cast_column(options.image_column, datasets.Image(decode=False))
        return iter(chosen)

    class_names = getattr(data.features.get(options.label_column), "names", None)
    return RowSource(name or "rows", split, data.column_names, class_names, read, len(data))


def list_tables(
    tables: Sequence[RowSource],
    root: Path,
    origin: str,
    options: ScanOptions,
    *,
    base: Path | None = None,
    files: Sequence[Path] = (),
) -> Listing:
    """base: folder that image paths inside the table must stay in; None where the table comes with resolved paths."""
    _check_labelled(tables, options)
    columns = [pick_columns(table.columns, options, table.name, options.image_column) for table in tables]
    names = dict.fromkeys(name for table in tables for name in table.class_names or ())
    rows = (
        _table_candidate(row, f"{table.name}#{number}", table, chosen, base)
        for table, chosen in zip(tables, columns, strict=True)
        for number, row in enumerate(table.read(list(chosen.values())))
    )
    total = sum(table.rows for table in tables)
    return Listing(rows, root, origin, list(names) or None, tables=files, no_label=NO_LABEL, total=total)


def _check_labelled(tables: Sequence[RowSource], options: ScanOptions) -> None:
    """Raises UsageError for a part that lacks the column of labels which the training images have."""
    labelled = [table for table in tables if options.label_column in table.columns]
    if not any(table.split == "train" for table in labelled):
        return
    for table in tables:
        if table not in labelled and table.split != "train":
            own = (name for name, meaning in options.split_map.items() if meaning == table.split)
            raise UsageError(
                f"{table.name}, the split {table.split!r}, has no column {options.label_column}, as "
                f"{labelled[0].name} has; it has {', '.join(map(str, table.columns))}",
                f"leave it out: --split-map {next(own, table.split)}=none, read one split: --split train, or name a "
                "column of labels that all have: --label-column NAME",
            )


def _table_candidate(
    row: Mapping[str, Any], name: str, table: RowSource, columns: Mapping[str, str], base: Path | None
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
