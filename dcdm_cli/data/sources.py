"""Scanning: from any source the user has to a checked manifest.

Every image is decoded once, which is the only honest test of a file. Files of a folder and members of a tar are
referenced where they are, never copied or changed; images inside tables are written below `materialise`, named by their
content.
"""

from __future__ import annotations

import glob
import hashlib
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdm_cli.data.archives import file_stamp
from dcdm_cli.data.candidates import Listing, Rejection, ScanOptions, known_split
from dcdm_cli.data.examine import Examined, examine_all
from dcdm_cli.data.hub import list_hub
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.data.listings import (
    holds_images,
    list_folder,
    list_manifest,
    list_parquet,
    list_saved_dataset,
)
from dcdm_cli.data.manifest import SCHEMA, Manifest
from dcdm_cli.data.splits import SPLITS, assign_codes, copies, split_codes
from dcdm_cli.data.tar_listing import expand_braces, list_tars
from dcdm_cli.errors import DcdmError, NotFoundError, UsageError
from dcdm_cli.files import atomic_path, hash_json
from dcdm_cli.gate import ClassNames, parse_json, typed
from dcdm_cli.run.progress import Job

GENERATED_MARK = "shards/output.json"
_MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".ndjson"})
# The words and separators by which `datasets` takes a folder or file for a split.
_DATASETS_SPLIT_WORDS = frozenset(
    {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"}
)
_DATASETS_SEPARATORS = re.compile(r"[-._ 0-9/]+")
_CLASS_MAP = 'write ["cat", "dog"] or {"cat": 0, "dog": 1}, indexes from 0'
_SHOWN = 3


@dataclass(frozen=True)
class Scan:
    """manifest: the usable images, in the source's order. rejected: the others. origin: the source, pinned."""

    manifest: Manifest
    rejected: tuple[Rejection, ...]
    warnings: tuple[str, ...]
    origin: str


class TooManyRejectedError(DcdmError):
    """More unusable images than allowed; `rejected` lists them."""

    def __init__(self, message: str, hint: str, rejected: Sequence[Rejection]) -> None:
        super().__init__(message, hint)
        self.rejected = tuple(rejected)


def scan(source: str, options: ScanOptions, materialise: Path, job: Job | None = None) -> Scan:
    """Reads a class-folder tree, Parquet files or WebDataset tars (a file, glob, brace range or folder), a saved
    dataset, a CSV or JSONL manifest, `-` (one from standard input) or `hf:owner/name[@revision]`.

    job: told how many images were read, and asked whether to stop. Raises NotFoundError when there is no such source or
    no usable image in it, UsageError when its contents contradict each other or the options, TooManyRejectedError, and
    InterruptedRunError.
    """
    with tempfile.TemporaryDirectory(prefix="dcdm-scan-") as spool:
        return scan_on_disk(source, options, materialise, Path(spool), "", job or Job())


def scan_on_disk(source: str, options: ScanOptions, materialise: Path, spool: Path, key: str, job: Job) -> Scan:
    """`scan` for sources of any size: rows are kept in `spool`, and the manifest's table is a file mapped into memory.

    About 50 bytes per image are held. A scan that was stopped goes on when it is called again with the same key, which
    stands for everything the result depends on. Raises InterruptedRunError when asked to stop.
    """
    listing = _open_listing(source, options, materialise.resolve())
    class_map = _read_class_map(options.class_map)
    examined = examine_all(listing, _class_lookup(class_map), options, spool, key, job)
    _check_rejected(examined.usable, examined.rejected, options)
    if not examined.usable and examined.rejected:
        raise _too_many(f"none of the {len(examined.rejected)} images can be used", "", examined.rejected)
    if not examined.usable:
        raise NotFoundError(
            f"no images found in {source}" + (f" (split {options.split})" if options.split else ""),
            "give a folder with one subfolder per class, Parquet files, tars, a CSV or JSONL file, or hf:owner/name",
        )
    columns = _Columns.of(examined)
    class_names = class_map or _ordered_classes(listing, set(columns.names))
    _check_twins(class_names)
    columns = columns.settled(class_names, options)
    table = _mapped_table(examined, columns, spool / "manifest.arrow")
    notes = [f"{count} {note}" for note, count in sorted(listing.notes.items())]
    found = (*_class_warnings(class_names, columns.labels), *_duplicate_warnings(columns, table), *notes)
    return Scan(Manifest(table, tuple(class_names), listing.root), tuple(examined.rejected), found, listing.origin)


@dataclass(frozen=True)
class _Columns:
    """What rules about the whole set need of every image. names: the distinct class names; name int32 [N]: positions in
    them; split int8 [N]: codes; content: bytes [N]. labels int32 [N]: empty until the classes are settled."""

    names: tuple[str, ...]
    name: np.ndarray
    split: np.ndarray
    content: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, examined: Examined) -> _Columns:
        known: dict[str, int] = {}
        name, split, content = [], [], []
        for table in examined.tables():
            texts = table["class_name"].to_pylist()
            name.append(np.array([known.setdefault(text, len(known)) for text in texts], np.int32))
            split.append(split_codes(table["split"].to_pylist()))
            content.append(np.array(table["content"].to_pylist(), "S32"))
        columns = (np.concatenate(parts) for parts in (name, split, content))
        return cls(tuple(known), *columns, labels=np.zeros(0, np.int32))

    def settled(self, class_names: Sequence[str], options: ScanOptions) -> _Columns:
        """With labels, and every image in a split."""
        position = {name: label for label, name in enumerate(class_names)}
        labels = np.array([position[name] for name in self.names], np.int32)[self.name]
        fractions = {"judge_fraction": options.judge_fraction, "test_fraction": options.test_fraction}
        return replace(self, labels=labels, split=assign_codes(self.split, labels, self.content, **fractions))


def _mapped_table(examined: Examined, columns: _Columns, file: Path) -> pa.Table:
    """The manifest's rows as an Arrow file, which the system pages in and out as they are needed."""
    words, start = np.array(SPLITS), 0
    with atomic_path(file, durable=False) as part, pa.ipc.new_file(str(part), SCHEMA) as writer:
        for chunk in examined.tables():
            here = slice(start, start + chunk.num_rows)
            start = here.stop
            values = {name: chunk[name] for name in chunk.schema.names if name in SCHEMA.names}
            values |= {"label": pa.array(columns.labels[here]), "split": pa.array(words[columns.split[here]])}
            values["synthetic"] = pa.array(np.zeros(chunk.num_rows, bool))
            arrays = [
                values[field.name].cast(field.type) if field.name in values else pa.nulls(len(chunk), field.type)
                for field in SCHEMA
            ]
            writer.write_table(pa.table(arrays, SCHEMA))
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def fingerprint(source: str, options: ScanOptions) -> str:
    """Another one when a file that the source lists is another: by names, sizes and times, without reading images.

    A dataset on the hub is known by its name and revision. Raises as `scan` does for a source that is not there.
    """
    if _is_on_hub(source):
        return hash_json(source)
    listing = _open_listing(source, options, Path())
    if listing.tables:
        return hash_json([(str(file), _stamp(file)) for file in listing.tables])
    known = hashlib.sha256()  # over one image after the other: a list of millions would not fit
    for one in listing.candidates:
        facts = [one.name, one.label, one.split, one.caption, one.difficulty, _stamp(one.image)]
        known.update(hash_json(facts).encode())
    return known.hexdigest()[:32]


def _stamp(image: Path | bytes | RejectedImage) -> Any:
    try:
        return file_stamp(image)[1:] if isinstance(image, Path) else str(image)
    except OSError as error:
        return error.errno


# Finding the reader


def _open_listing(source: str, options: ScanOptions, materialise: Path) -> Listing:
    if source == "-":
        return _only_split(list_manifest(None, options), options)
    if _is_on_hub(source):
        return list_hub(source.removeprefix("hf:"), materialise, options)
    try:
        return _only_split(_open_path(source.removeprefix("hf:"), options, materialise), options)
    except PermissionError as error:
        raise NotFoundError(
            f"cannot read {error.filename}: {error.strerror}",
            f"get the right to read it: chmod u+r {error.filename}",
            file=error.filename,
        ) from error


def _is_on_hub(source: str) -> bool:
    return source.startswith("hf:") and not source.startswith(("hf:/", "hf:.", "hf:~"))


def _open_path(source: str, options: ScanOptions, materialise: Path) -> Listing:
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path.resolve(), options, materialise)
    files = [path] if path.is_file() else _matching(path)
    if not files:
        raise NotFoundError(f"no such file or folder: {source}", "a dataset on the hub is written hf:owner/name")
    if all(file.suffix.lower() == ".parquet" for file in files):
        return list_parquet(files, materialise, str(path.absolute()), options)
    if all(file.suffix.lower() == ".tar" for file in files):
        return list_tars(files, str(path.absolute()), options)
    if len(files) == 1 and files[0].suffix.lower() in _MANIFEST_SUFFIXES:
        return list_manifest(files[0], options)
    raise UsageError(
        f"{source} is no source of images", "give a folder, or .parquet, .tar, .csv or .jsonl files", file=source
    )


def _matching(path: Path) -> list[Path]:
    """Files of a glob or of a brace range; a name that a range spells out must exist."""
    found: list[Path] = []
    for pattern in expand_braces(str(path)):
        files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if not files and pattern != str(path):
            raise NotFoundError(f"no such file: {pattern}", "check the ends of the range in braces", file=pattern)
        found += files
    return found


def _open_folder(folder: Path, options: ScanOptions, materialise: Path) -> Listing:
    if (folder / GENERATED_MARK).is_file():  # a folder of ours: the images are in one of these
        folder = next(part for part in (folder / "train", folder / "data", folder) if part.is_dir())
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return list_saved_dataset(folder, materialise, options)
    if not holds_images(folder, options):
        tables = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
        if tables:
            return list_parquet(tables, materialise, str(folder), options)
        tars = sorted(file for file in folder.rglob("*.tar") if file.is_file())
        if tars:
            return list_tars(tars, str(folder), options)
    return list_folder(folder, options)


def _only_split(listing: Listing, options: ScanOptions) -> Listing:
    """Without splits in the source, the option says which split the rows are; with them, which rows to keep."""
    if options.split:
        wanted = known_split(options.split, "--split")
        kept = (candidate for candidate in listing.candidates if candidate.split in (None, wanted))
        return replace(listing, candidates=kept, default_split=wanted)
    return listing


# Rules about the whole set


def _check_rejected(used: int, rejected: Sequence[Rejection], options: ScanOptions) -> None:
    share = len(rejected) / max(1, used + len(rejected))
    limit = 0.0 if options.strict else options.max_bad
    if share <= limit:
        return
    raise _too_many(
        f"{len(rejected)} of {used + len(rejected)} images cannot be used, more than {limit:.3g} of them",
        ", or allow more with --max-bad" + (" and without --strict" if options.strict else ""),
        rejected,
    )


def _too_many(what: str, otherwise: str, rejected: Sequence[Rejection]) -> TooManyRejectedError:
    """With the first reasons."""
    shown = "; ".join(f"{r.path}: {r.reason}" for r in rejected[:_SHOWN])
    more = ", ..." if len(rejected) > _SHOWN else ""
    return TooManyRejectedError(f"{what}: {shown}{more}", f"repair or remove them{otherwise}", rejected)


# Classes


def _read_class_map(file: Path | None) -> list[str] | None:
    """Class names in label order, from a JSON list or {name: index}."""
    if file is None:
        return None
    try:
        stated = parse_json(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise NotFoundError(f"no class map at {file}", "check the path given with --class-map", file=file) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the class map {file}: {error}", _CLASS_MAP, file=file) from error
    if isinstance(stated, dict) and sorted(map(str, stated.values())) == sorted(map(str, range(len(stated)))):
        stated = sorted(stated, key=lambda name: int(stated[name]))
    try:
        names = typed(ClassNames, stated)
    except ValueError as error:
        raise UsageError(f"{file} is no class map: {error}", _CLASS_MAP, file=file) from error
    if not names:
        raise UsageError(f"{file} is no class map: it is empty", _CLASS_MAP, file=file)
    return list(names)


def _class_lookup(class_map: Sequence[str] | None) -> Mapping[str, str] | None:
    """Accepts a class by name and, where no name looks like one, by index."""
    if class_map is None:
        return None
    return {str(i): name for i, name in enumerate(class_map)} | {name: name for name in class_map}


def _ordered_classes(listing: Listing, found: set[str]) -> list[str]:
    """The source's own order; else by number where all names are numbers; else by name."""
    if listing.class_names is not None:
        return [*listing.class_names, *sorted(found - set(listing.class_names))]
    numbers = all(name.isascii() and name.isdecimal() for name in found)
    return sorted(found, key=lambda name: (int(name) if numbers else 0, name))


def _check_twins(class_names: Iterable[str]) -> None:
    """Two spellings of one class would share a folder on many file systems. Raises UsageError."""
    spellings: dict[str, str] = {}
    for name in class_names:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if folded in spellings:
            raise UsageError(
                f"the classes {spellings[folded]!r} and {name!r} differ only in case or in how accents are encoded",
                "rename one of them, or merge them",
            )
        spellings[folded] = name


# Warnings


def _class_warnings(class_names: Sequence[str], labels: np.ndarray) -> Iterator[str]:
    used = np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, used, strict=True) if not count]
    risky = [name for name in class_names if is_split_like(name)]
    if empty:
        yield f"no images in {_some(empty)}: the class keeps its index"
    if len(class_names) == 1:
        yield f"there is only one class, {class_names[0]!r}: difficulty needs at least two to tell apart"
    if risky:
        yield f"{_some(risky)}: `datasets` takes such a class folder for a split unless data_files is given"


def is_split_like(name: str) -> bool:
    """Whether a word of the name makes `datasets` take a folder of that name for a split."""
    return not _DATASETS_SPLIT_WORDS.isdisjoint(_DATASETS_SEPARATORS.split(name.casefold()))


def _duplicate_warnings(columns: _Columns, table: pa.Table) -> Iterator[str]:
    groups = list(copies(columns.content))
    leaks = [rows for rows in groups if len(np.unique(columns.split[rows])) > 1]
    within = [rows for rows in groups if len(np.unique(columns.split[rows])) == 1]
    if leaks:
        yield f"leak: {len(leaks)} images are in more than one split: {_some_copies(leaks, table)}"
    if within:
        yield f"{len(within)} images have exact copies in their split: {_some_copies(within, table)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )


def _some_copies(groups: Sequence[np.ndarray], table: pa.Table) -> str:
    shown = [table.select(["split", "path"]).take(pa.array(rows[:_SHOWN])).to_pylist() for rows in groups[:_SHOWN]]
    return "; ".join(" = ".join(f"{row['split']}:{row['path']}" for row in rows) for rows in shown)
