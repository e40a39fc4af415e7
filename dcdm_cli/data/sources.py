"""Scanning: from any source the user has to a checked manifest.

Every image is decoded once, which is the only honest test of a file. Files of a folder are referenced where they are,
never copied or changed; images inside tables are written below `materialise`, named by their content.
"""

from __future__ import annotations

import glob
import json
import os
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dcdm_cli.data.candidates import Candidate, Listing, Rejection, ScanOptions, clean_name, known_split
from dcdm_cli.data.hub import list_hub
from dcdm_cli.data.images import RejectedImage, decode_image, image_format, image_hash
from dcdm_cli.data.listings import (
    holds_images,
    list_folder,
    list_manifest,
    list_parquet,
    list_saved_dataset,
)
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import DcdmError, NotFoundError, UsageError
from dcdm_cli.files import hash_bytes, hash_json, write_bytes
from dcdm_cli.job import Job

_MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".ndjson"})
# The words and separators by which `datasets` takes a folder or file for a split.
_DATASETS_SPLIT_WORDS = frozenset(
    {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"}
)
_DATASETS_SEPARATORS = re.compile(r"[-._ 0-9/]+")
_FILE_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # elsewhere the format's name in lower case
_CLASS_MAP = 'write ["cat", "dog"] or {"cat": 0, "dog": 1}, indexes from 0'
_SHOWN = 3
_WAVE = 64  # images in flight; bounds memory when a table holds the bytes


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


class _Sample(NamedTuple):
    """content: hash of the decoded image; row: its manifest row, still without label."""

    content: str
    row: dict[str, Any]


def scan(source: str, options: ScanOptions, materialise: Path, job: Job | None = None) -> Scan:
    """Reads a class-folder tree, a Parquet file, glob or folder, a saved dataset, a CSV or JSONL manifest, `-` (one
    from standard input) or `hf:owner/name[@revision]`.

    job: told how many images were read, and asked whether to stop. Raises NotFoundError when there is no such source or
    no usable image in it, UsageError when its contents contradict each other or the options, TooManyRejectedError, and
    InterruptedRunError.
    """
    listing = _open_listing(source, options, materialise.resolve())
    class_map = _read_class_map(options.class_map)
    samples, rejected = _examine_all(listing, _class_lookup(class_map), options, job or Job())
    _check_rejected(len(samples), rejected, options)
    if not samples:
        raise NotFoundError(
            f"no images found in {source}" + (f" (split {options.split})" if options.split else ""),
            "give a folder with one subfolder per class, a Parquet, CSV or JSONL file, or hf:owner/name",
        )
    rows = [sample.row for sample in samples]
    class_names = class_map or _ordered_classes(listing, {row["class_name"] for row in rows})
    _check_twins(class_names)
    _fill_labels(rows, class_names)
    _fill_splits(samples, options)
    notes = [f"{count} {note}" for note, count in sorted(listing.notes.items())]
    found = (*_class_warnings(class_names, rows), *_duplicate_warnings(samples), *notes)
    return Scan(Manifest.from_rows(rows, class_names, listing.root), tuple(rejected), found, listing.origin)


def fingerprint(source: str, options: ScanOptions) -> str:
    """Another one when a file that the source lists is another: by names, sizes and times, without reading images.

    A dataset on the hub is known by its name and revision. Raises as `scan` does for a source that is not there.
    """
    if _is_on_hub(source):
        return hash_json(source)
    listing = _open_listing(source, options, Path())
    if listing.tables:
        return hash_json([(str(file), _stamp(file)) for file in listing.tables])
    return hash_json([(c.name, c.label, c.split, c.caption, c.difficulty, _stamp(c.image)) for c in listing.candidates])


def _stamp(image: Path | bytes | RejectedImage) -> Any:
    try:
        status = image.stat() if isinstance(image, Path) else None
    except OSError as error:
        return error.errno
    return (status.st_size, status.st_mtime_ns) if status else str(image)


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
    files = [path] if path.is_file() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        raise NotFoundError(f"no such file or folder: {source}", "a dataset on the hub is written hf:owner/name")
    if all(file.suffix.lower() == ".parquet" for file in files):
        return list_parquet(files, materialise, str(path.absolute()), options)
    if len(files) == 1 and files[0].suffix.lower() in _MANIFEST_SUFFIXES:
        return list_manifest(files[0], options)
    raise UsageError(
        f"{source} is no source of images", "give a folder, or .parquet, .csv or .jsonl files", file=source
    )


def _open_folder(folder: Path, options: ScanOptions, materialise: Path) -> Listing:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return list_saved_dataset(folder, materialise, options)
    if not holds_images(folder, options):
        tables = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
        if tables:
            return list_parquet(tables, materialise, str(folder), options)
    return list_folder(folder, options)


def _only_split(listing: Listing, options: ScanOptions) -> Listing:
    """Without splits in the source, the option says which split the rows are; with them, which rows to keep."""
    if options.split:
        wanted = known_split(options.split, "--split")
        kept = (candidate for candidate in listing.candidates if candidate.split in (None, wanted))
        return replace(listing, candidates=kept, default_split=wanted)
    return listing


# Checking each image


def _examine_all(
    listing: Listing, lookup: Mapping[str, str] | None, options: ScanOptions, job: Job
) -> tuple[list[_Sample], list[Rejection]]:
    samples: list[_Sample] = []
    rejected: list[Rejection] = []
    report = job.stoppable("the images have not been read yet")

    def examine(candidate: Candidate) -> _Sample | Rejection:
        try:
            return _examine(candidate, listing, lookup, options)
        except RejectedImage as error:
            return Rejection(clean_name(candidate.name), error.reason, clean_name(error.detail))

    for outcome in _in_threads(examine, listing.candidates):
        report("reading images", len(samples) + len(rejected) + 1, 0)
        if isinstance(outcome, _Sample):
            samples.append(outcome)
            continue
        rejected.append(outcome)
        if options.strict:
            break
    report("reading images", len(samples) + len(rejected), len(samples) + len(rejected))
    return samples, rejected


def _in_threads(
    examine: Callable[[Candidate], _Sample | Rejection], candidates: Iterator[Candidate]
) -> Iterator[_Sample | Rejection]:
    """Results in order. Decoding and hashing release the interpreter lock, so threads use all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # set here because warning filters are not per thread
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        while wave := list(islice(candidates, _WAVE)):
            yield from pool.map(examine, wave)


def _examine(candidate: Candidate, listing: Listing, lookup: Mapping[str, str] | None, options: ScanOptions) -> _Sample:
    if isinstance(candidate.image, RejectedImage):
        raise candidate.image
    class_name = candidate.label if lookup is None else lookup.get(candidate.label or "")
    if class_name is None:
        raise RejectedImage("no_label", f"label {candidate.label!r}" if candidate.label else "")
    image = decode_image(candidate.image, options.decode)
    path = candidate.name
    if isinstance(candidate.image, bytes):
        path = _keep_original(candidate.image, listing.root)
    content = image_hash(image)
    row = {
        "sample_id": f"{content}-{hash_bytes(candidate.name.encode())[:8]}",
        "path": path,
        "class_name": class_name,
        "split": candidate.split or listing.default_split,
        "width": image.width,
        "height": image.height,
        "synthetic": False,
        "difficulty": candidate.difficulty,
        "caption": candidate.caption,
    }
    return _Sample(content, row)


def _keep_original(content: bytes, root: Path) -> str:
    """Writes the encoded image as it came, once per content. Returns its path relative to `root`."""
    kind, key = image_format(content), hash_bytes(content)
    relative = f"{key[:2]}/{key}{_FILE_SUFFIXES.get(kind, '.' + kind.lower())}"
    file = root / relative
    if not file.is_file() or file.stat().st_size != len(content):  # the size tells a file that a power cut left short
        write_bytes(file, content, durable=False)
    return relative


def _check_rejected(used: int, rejected: Sequence[Rejection], options: ScanOptions) -> None:
    share = len(rejected) / max(1, used + len(rejected))
    limit = 0.0 if options.strict else options.max_bad
    if share <= limit:
        return
    shown = "; ".join(f"{r.path}: {r.reason}" for r in rejected[:_SHOWN])
    raise TooManyRejectedError(
        f"{len(rejected)} of {used + len(rejected)} images cannot be used, more than {limit:.3g} of them: {shown}"
        + (", ..." if len(rejected) > _SHOWN else ""),
        "repair or remove them, or allow more with --max-bad" + (" and without --strict" if options.strict else ""),
        rejected,
    )


# Classes


def _read_class_map(file: Path | None) -> list[str] | None:
    """Class names in label order, from a JSON list or {name: index}."""
    if file is None:
        return None
    try:
        stated = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise NotFoundError(f"no class map at {file}", "check the path given with --class-map", file=file) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the class map {file}: {error}", _CLASS_MAP, file=file) from error
    if isinstance(stated, dict) and sorted(map(str, stated.values())) == sorted(map(str, range(len(stated)))):
        stated = sorted(stated, key=lambda name: int(stated[name]))
    if not isinstance(stated, list) or not stated or not all(isinstance(name, str) for name in stated):
        raise UsageError(f"{file} is no class map", _CLASS_MAP, file=file)
    return stated


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


def _fill_labels(rows: Iterable[dict[str, Any]], class_names: Sequence[str]) -> None:
    labels = {name: label for label, name in enumerate(class_names)}
    for row in rows:
        row["label"] = labels[row["class_name"]]


# Splits


def _fill_splits(samples: Sequence[_Sample], options: ScanOptions) -> None:
    rows = [sample.row for sample in samples]
    splits = assign_splits(
        [row["split"] for row in rows],
        [row["label"] for row in rows],
        [sample.content for sample in samples],
        judge_fraction=options.judge_fraction,
        test_fraction=options.test_fraction,
    )
    for row, split in zip(rows, splits, strict=True):
        row["split"] = split


def assign_splits(
    splits: Sequence[str | None],
    labels: Sequence[int],
    contents: Sequence[str],
    *,
    judge_fraction: float,
    test_fraction: float,
) -> list[str]:
    """Gives each image one of train, judge and test. Not from the paper, which names a train and a test split only.

    Splits that the source has are kept (its validation split is the judge's); images without one are train. A missing
    test split is carved out of train, then a missing judge split out of test: per class, the given fraction of distinct
    images, chosen by content hash, so that the choice is the same in every run and copies of an image stay together. A
    class always keeps an image in the split that is carved.
    """
    assigned = [split or "train" for split in splits]
    if "test" not in assigned:
        _carve(assigned, labels, contents, ("train", "test"), test_fraction)
    if "judge" not in assigned:
        _carve(assigned, labels, contents, ("test", "judge"), judge_fraction)
    return assigned


def _carve(
    assigned: list[str], labels: Sequence[int], contents: Sequence[str], move: tuple[str, str], fraction: float
) -> None:
    origin, target = move
    by_class: dict[int, set[str]] = defaultdict(set)
    for split, label, content in zip(assigned, labels, contents, strict=True):
        if split == origin:
            by_class[label].add(content)
    moved = {
        (label, content)
        for label, distinct in by_class.items()
        for content in sorted(distinct)[: min(round(len(distinct) * fraction), len(distinct) - 1)]
    }
    for index, key in enumerate(zip(labels, contents, strict=True)):
        if assigned[index] == origin and key in moved:
            assigned[index] = target


# Warnings


def _class_warnings(class_names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    used = {row["class_name"] for row in rows}
    empty = [name for name in class_names if name not in used]
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


def _duplicate_warnings(samples: Iterable[_Sample]) -> Iterator[str]:
    copies: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for content, row in samples:
        copies[content].append(row)
    groups = [rows for rows in copies.values() if len(rows) > 1]
    leaks = [rows for rows in groups if len({row["split"] for row in rows}) > 1]
    within = [rows for rows in groups if len({row["split"] for row in rows}) == 1]
    if leaks:
        yield f"leak: {len(leaks)} images are in more than one split: {_some_copies(leaks)}"
    if within:
        yield f"{len(within)} images have exact copies in their split: {_some_copies(within)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )


def _some_copies(groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    return "; ".join(" = ".join(f"{row['split']}:{row['path']}" for row in rows[:_SHOWN]) for rows in groups[:_SHOWN])
