"""The manifest: one row per image, the same schema for real and generated images.

Stored as `samples.parquet`. The class names, in label order, and the folder relative paths start from are kept in the
file's metadata, so that the table explains itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from dcdm_cli.data.archives import member_place
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.files import atomic_path, hash_json
from dcdm_cli.gate import PLAN_ID, SCAN_ID, ClassNames, Column, Word, check_columns, parse_json, refuse_first, typed
from dcdm_export import places

T = TypeVar("T")
SCHEMA = pa.schema(
    [
        # identity
        ("sample_id", pa.string()),  # hash of the decoded image, `-`, hash of its name (copies); or of the plan row
        ("path", pa.string()),  # POSIX; relative to `root` unless absolute; in files absolute, see `write_manifest`
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("split", pa.string()),  # train | judge | test
        ("width", pa.int32()),  # pixels, after EXIF rotation
        ("height", pa.int32()),
        ("synthetic", pa.bool_()),
        # scores
        ("difficulty", pa.float32()),  # s in [0, 1], 0 easy, 1 hard; null where it could not be computed
        ("p_true", pa.float32()),
        ("loss", pa.float32()),
        ("margin", pa.float32()),
        ("entropy", pa.float32()),
        ("predicted", pa.int32()),
        ("fold", pa.int32()),
        ("suspect_label", pa.bool_()),
        ("caption", pa.string()),
        # generated images only
        ("prompt", pa.string()),
        ("seed", pa.int64()),  # below 2**53: larger values lose digits in some readers
        ("target_difficulty", pa.float32()),  # what the user wants to come out
        ("requested_difficulty", pa.float32()),  # what the encoder is given, after calibration
        ("measured_difficulty", pa.float32()),  # what the scorer finds in the finished image
        ("label_checked", pa.bool_()),  # whether a second classifier sees the label; null where none was asked
        ("generator", pa.string()),  # hash of base model, adapter and sampler settings
        ("source_id", pa.string()),  # sample id of the real image that it started from; null = noise alone
        ("prompt_source", pa.string()),  # where the prompt is from, where a plan has prompts of several sources
    ]
)
COLUMNS = tuple(SCHEMA.names)
LATER = ("source_id", "label_checked", "prompt_source")  # columns that older manifests lack, which stand for null
SCORE_COLUMNS = ("difficulty", "p_true", "loss", "margin", "entropy", "predicted", "fold", "suspect_label")
# What holds for every row that is read from a file.
_FINITE = Column(low=-3.4e38, high=3.4e38, nullable=True)
_SHARE = Column(low=0, high=1, nullable=True)
_PATH = Column(pattern=r"[^\x00]+", longest=8192)
RULES = {
    "sample_id": Column(pattern=f"{SCAN_ID}|{PLAN_ID}", nullable=True),
    "path": _PATH,
    "label": Column(low=-1, high=2**20, nullable=True),
    "width": Column(low=1, high=2**20, nullable=True),
    "height": Column(low=1, high=2**20, nullable=True),
    **dict.fromkeys(("difficulty", "p_true", "measured_difficulty", "target_difficulty"), _SHARE),
    "requested_difficulty": _SHARE,
    **dict.fromkeys(("loss", "margin", "entropy"), _FINITE),
    **dict.fromkeys(("predicted", "fold"), Column(low=-1, high=2**20, nullable=True)),
    "seed": Column(low=0, high=2**53 - 1, nullable=True),
    **dict.fromkeys(("class_name", "split", "caption", "prompt", "generator", "prompt_source"), Column(nullable=True)),
    "source_id": Column(pattern=f"{SCAN_ID}|{PLAN_ID}", nullable=True),
}
ROW_GROUP = 65_536  # rows; what a reader of the file holds at once
_META_KEY = b"dcdm"


class ImagePaths(Sequence[Path]):
    """Absolute paths of images, made when they are asked for."""

    def __init__(self, root: Path, names: pa.Array) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> ImagePaths: ...

    def __getitem__(self, index: int | slice) -> Path | ImagePaths:
        if isinstance(index, slice):
            return ImagePaths(self.root, self.names[index])
        return _image_path(self.root, self.names[int(index)].as_py())

    def take(self, rows: np.ndarray) -> ImagePaths:
        """rows: int positions."""
        return ImagePaths(self.root, self.names.take(pa.array(rows, pa.int64())))

    def sorted_rows(self, labels: np.ndarray) -> np.ndarray:
        """Positions in the order of `from_the_end` and label."""
        ends = [from_the_end(name) for name in self.names.to_pylist()]
        return np.array(sorted(range(len(ends)), key=lambda i: (ends[i], labels[i])), np.int64)


def from_the_end(path: str) -> str:
    """What paths are sorted by where their order must not hang on where their folders lie: a run that was moved would
    train otherwise on images of two places."""
    return path[::-1]


@dataclass(frozen=True)
class Manifest:
    """An immutable table of samples.

    table: pyarrow table with exactly `SCHEMA`. class_names: label i is class_names[i]; a class may have no rows.
    root: folder that relative paths start from; None = the manifest's own folder.
    """

    table: pa.Table
    class_names: tuple[str, ...]
    root: Path | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], class_names: Sequence[str], root: Path | None = None
    ) -> Manifest:
        """Missing keys become null. Raises UsageError for a key outside the schema or a value of a wrong type."""
        listed = list(rows)
        unknown = {key for row in listed for key in row} - set(COLUMNS)
        if unknown:
            raise UsageError(f"manifest rows have unknown columns {sorted(unknown)}", f"known: {', '.join(COLUMNS)}")
        try:
            table = pa.Table.from_pylist([{c: row.get(c) for c in COLUMNS} for row in listed], schema=SCHEMA)
        # the last: of texts that are no UTF-8
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
            raise UsageError(
                f"manifest rows do not fit the schema: {error}", "correct the source, then: dcdm score"
            ) from error
        return cls(table, tuple(class_names), root)

    def column(self, name: str) -> np.ndarray:
        """One column as a NumPy array: floats with NaN for null, integers with -1 for null, strings as objects."""
        column = self.table[name]
        if pa.types.is_integer(column.type):
            return column.fill_null(-1).to_numpy()
        if pa.types.is_boolean(column.type):
            return column.fill_null(False).to_numpy()
        return column.to_numpy(zero_copy_only=False)

    def rows(self) -> list[dict[str, Any]]:
        return self.table.to_pylist()

    def paths(self) -> list[Path]:
        """Absolute paths of the images. Raises MismatchError for one that leads out of the root."""
        base = self.root or Path()
        return [_image_path(base, name) for name in self.table["path"].to_pylist()]

    def image_paths(self) -> ImagePaths:
        """`paths` for large sets: a few bytes per image instead of a Path."""
        return ImagePaths(self.root or Path(), self.table["path"].combine_chunks())

    def with_columns(self, columns: Mapping[str, Any]) -> Manifest:
        """Replaces whole columns; Arrow arrays are taken as they are. NaN becomes null in float columns."""
        table = self.table
        for name, values in columns.items():
            index = SCHEMA.get_field_index(name)
            field = SCHEMA.field(index)
            array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
            table = table.set_column(index, field, array.cast(field.type))
        return replace(self, table=table)

    def select(self, keep: np.ndarray) -> Manifest:
        """Rows by boolean mask or by integer positions."""
        keep = np.asarray(keep)
        if keep.dtype == bool:
            return replace(self, table=self.table.filter(pa.array(keep)))
        # typed, since an empty list is of floats to NumPy
        return replace(self, table=self.table.take(pa.array(keep, pa.int64())))

    def split(self, *names: str) -> Manifest:
        return self.select(np.isin(self.column("split").astype(str), names))

    def digest(self, *columns: str) -> str:
        """Hash of whole columns, without a list of their values."""
        parts = []
        for start in range(0, len(self), ROW_GROUP):
            values = self.table.select(list(columns)).slice(start, ROW_GROUP).to_pydict()
            parts.append(hash_json([values[name] for name in columns]))
        return hash_json(parts)

    def class_counts(self) -> np.ndarray:
        """int64 [classes]"""
        labels = self.column("label")
        return np.bincount(labels[labels >= 0], minlength=len(self.class_names))


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes Parquet through a temporary file, so that readers never see a torn table.

    Where the manifest has a root the file's paths are absolute, which any tool opens. `read_manifest` gives them
    without it again, so that images below the manifest's folder are found when both have been moved.
    """
    write_manifest_parts([manifest.table], path, manifest.class_names, manifest.root, portable=False)


def write_manifest_parts(
    parts: Iterable[pa.Table],
    path: Path,
    class_names: Sequence[str],
    root: Path | None,
    *,
    portable: bool = True,
) -> None:
    """`write_manifest` for more rows than fit in memory: tables of `SCHEMA`, one row group each.

    portable: images below the manifest's folder are named relative to `root`, as in a data set that is moved or
    published as a whole.
    """
    home = _portable(root.resolve(), path.parent.resolve()) if root else None
    # None: paths stay relative, and right wherever the data set is moved to.
    start = str(root.resolve()) if root and not (portable and home and not Path(home).is_absolute()) else None
    meta = {"schema": 1, "class_names": list(class_names), "root": home, "start": start}
    schema = SCHEMA.with_metadata({_META_KEY: json.dumps(meta).encode()})
    with atomic_path(path) as part, pq.ParquetWriter(part, schema) as writer:
        for table in parts:
            writer.write_table(_openable(table, start).cast(schema), row_group_size=ROW_GROUP)


def manifest_classes(path: Path) -> tuple[str, ...] | None:
    """The class names of a manifest, in label order; None without a readable one. Reads no rows."""
    return _stated(path, lambda: _read_meta(pq.read_schema(path)).class_names)


def manifest_rows(path: Path) -> int | None:
    """How many rows a manifest has; None without a readable one. Reads no rows."""
    return _stated(path, lambda: pq.read_metadata(path).num_rows)


def has_rows(path: Path, parts: Iterable[pa.Table]) -> bool:
    """Whether a manifest in whose folder the images lie, as `write_manifest_parts` left it, still has these rows. Reads
    one of its row groups at a time. Raises pa.ArrowException or OSError for what cannot be read."""
    wanted = (part.slice(start, ROW_GROUP) for part in parts for start in range(0, len(part), ROW_GROUP))
    with pq.ParquetFile(path) as there:
        columns = as_far_as_there(path, COLUMNS)
        groups = (_with_later(there.read_row_group(number, columns)) for number in range(there.num_row_groups))
        pairs = zip_longest(wanted, (group for group in groups if len(group)))
        return all(a is not None and b is not None and _same_rows(_plain(a), _plain(b)) for a, b in pairs)


def _plain(rows: pa.Table) -> pa.Table:
    return rows.select(COLUMNS).cast(SCHEMA)


def _same_rows(a: pa.Table, b: pa.Table) -> bool:
    return len(a) == len(b) and all(_same_values(a[name], b[name]) for name in COLUMNS)


def _same_values(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    """NaN, which equals nothing, is as good as no value."""
    known = [pc.call_function("invert", [column.is_null(nan_is_null=True)]) for column in (a, b)]
    return known[0].equals(known[1]) and a.filter(known[0]).equals(b.filter(known[1]))


def _stated(path: Path, read: Callable[[], T]) -> T | None:
    """What a manifest says of itself; None without a readable one."""
    if not path.is_file():  # to open a pipe would wait for ever
        return None
    try:
        return read()
    except (OSError, KeyError, ValueError):  # pa.ArrowInvalid is a ValueError
        return None


def _portable(root: Path, home: Path) -> str:
    """Relative when the images lie below the manifest's folder, so that a run folder can be moved."""
    return root.relative_to(home).as_posix() if root.is_relative_to(home) else str(root)


def _openable(table: pa.Table, start: str | None) -> pa.Table:
    """Paths as other tools open them: absolute ones, where it is known what they start from."""
    if start is None:
        return table
    names = table["path"]
    # The last argument stands between the others.
    whole = pc.call_function("binary_join_element_wise", [pa.scalar(start.rstrip("/")), names, pa.scalar("/")])
    return _with_paths(table, pc.call_function("if_else", [_begins(names, "/"), names, whole]))


def _as_known(table: pa.Table, start: str | None) -> pa.Table:
    """The other way round: relative to the root, as everything here knows them. start: absolute, where the root was
    when the file was written; None or relative: the file's paths are so already."""
    if start is None or not Path(start).is_absolute():
        return table
    names, start = table["path"], start.rstrip("/") + "/"
    rest = pc.call_function("utf8_slice_codeunits", [names], pc.SliceOptions(len(start)))
    return _with_paths(table, pc.call_function("if_else", [_begins(names, start), rest, names]))


def _begins(names: Any, start: str) -> Any:
    return pc.call_function("starts_with", [names], pc.MatchSubstringOptions(start))


def _with_paths(table: pa.Table, paths: Any) -> pa.Table:
    index = table.schema.get_field_index("path")
    return table.set_column(index, table.schema.field(index), paths)


def read_manifest(path: Path, *, made_by: str = "dcdm score") -> Manifest:
    """Raises NotFoundError when there is no such file, MismatchError when it is not a dcdm manifest."""
    if not path.is_file():
        raise NotFoundError(f"no manifest at {path}", f"make it first: {made_by}", file=path)
    try:
        table = pq.read_table(path, columns=as_far_as_there(path, COLUMNS))
        meta = _read_meta(table.schema)
        table = _with_later(table).select(COLUMNS).cast(SCHEMA).replace_schema_metadata(None)
        table = _as_known(table, meta.start or meta.root)  # older files say one root for both
        check_columns(table, RULES)
        known = table["label"].fill_null(-1).to_numpy() < len(meta.class_names)
        refuse_first(table, "label", known, f"there are {len(meta.class_names)} classes")
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:  # a damaged page is an OSError
        raise MismatchError(
            f"{path} is no manifest of dcdm: {error}", f"make it again: {made_by} --force", file=path
        ) from error
    root = path.parent / (meta.root or "")  # joining with an absolute path gives that path
    return Manifest(table, meta.class_names, root)


def share_true(column: pa.ChunkedArray) -> float | None:
    """Of a boolean column, among the rows that have a value; None where none has."""
    known = column.drop_null()
    return float(known.to_numpy().mean()) if len(known) else None


def as_far_as_there(path: Path, names: Sequence[str]) -> list[str]:
    """Of the columns to read, those that a file from before they existed does not lack. Reads no rows."""
    there = pq.read_schema(path).names
    return [name for name in names if name in there or name not in LATER]


def _with_later(table: pa.Table) -> pa.Table:
    for name in LATER:
        if name not in table.schema.names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table


_Place = Annotated[str, Field(max_length=8192, pattern=r"^[^\x00]*$")]


@dataclass(frozen=True)
class _Meta:
    """What the file says of itself. root: relative to the file's folder, or absolute; None = that folder. start: what
    its paths begin with, the root at the time of writing; None = they are relative. note: of older files."""

    class_names: ClassNames
    root: _Place | None = None
    start: _Place | None = None
    note: Word = ""
    schema: Literal[1] = 1


def _read_meta(schema: pa.Schema) -> _Meta:
    """Raises KeyError without the metadata, ValueError for any other fault of it."""
    return typed(_Meta, parse_json((schema.metadata or {})[_META_KEY]))


def _image_path(root: Path, name: str) -> Path:
    """The file or tar member that a manifest's path means, spelled as it is there. Links are followed as long as they
    stay inside the root; of a member, those of its tar."""
    path = root / name
    place = member_place(path)
    try:
        places.inside(root, str(place.tar) if place else name)
    except places.OutsideError as error:
        raise MismatchError(
            f"the image path {error}", "score the images again, from where they are: dcdm score SOURCE", file=root
        ) from error
    return path
