"""Candidates: images that a source lists but nobody has decoded yet, and the rules for reading their names and labels.

Sources are not trusted: a path must stay inside its root, and a fault of one image becomes that candidate's
`RejectedImage` instead of stopping the listing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dcdm_cli.data.images import DEFAULT_OPTIONS, DecodeOptions, RejectedImage
from dcdm_cli.data.trees import IMAGE_SUFFIXES
from dcdm_cli.errors import UsageError
from dcdm_cli.gate import shorten
from dcdm_export import places

# What spreadsheets and data frames write where a row has no label.
NO_LABEL = frozenset({"-1", "-1.0", "nan", "NaN", "None", "null", "NULL", "<NA>"})


@dataclass(frozen=True)
class ScanOptions:
    """How a source is read.

    split: keep only this split; in a source without splits, the split its rows are. split_map: the source's own names,
    in lower case, -> train, judge, test, none (not read) or class (a folder that is no split). exclude: patterns of
    shells for names of files and folders, or for their paths below the source. The columns: names in tables and lists.
    image_root: folder that paths in a manifest file start from, None = the file's own. caption_files: whether a
    .txt or .caption beside an image is its caption. max_bad: largest share of unusable images, in [0, 1]; strict: stop
    at the first. judge_fraction, test_fraction, test_from: see `splits.assign_splits`. class_map: JSON file with a list
    of class names, or {name: index}. sparse_classes: what is done with classes of fewer than `min_train` different
    training images (`classes.settle_sparse`). standard_input: what the source `-` reads, where it was read before; None
    reads it.
    """

    split: str | None = None
    split_map: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    image_column: str = "image"
    label_column: str = "label"
    caption_column: str | None = None
    score_column: str | None = None
    image_root: Path | None = None
    caption_files: bool = True
    max_bad: float = 0.01
    strict: bool = False
    follow_links: bool = False
    judge_fraction: float = 0.3
    test_fraction: float = 0.2
    test_from: Literal["auto", "train"] = "auto"
    class_map: Path | None = None
    sparse_classes: Literal["drop", "keep", "stop"] = "keep"
    min_train: int = 1
    decode: DecodeOptions = DEFAULT_OPTIONS
    standard_input: bytes | None = None


@dataclass(frozen=True)
class Candidate:
    """One listed image. name: how the source calls it; image: a file, the encoded bytes, or why there is neither."""

    name: str
    image: Path | bytes | RejectedImage
    label: str | None
    split: str | None = None
    caption: str | None = None
    difficulty: float | None = None


@dataclass(frozen=True)
class Rejection:
    """A listed image that is left out. reason: a stable code, of `RejectedImage` or `no_label`. split: as listed."""

    path: str
    reason: str
    detail: str
    split: str = ""


@dataclass(frozen=True)
class Listing:
    """candidates: lazy, to be read once. class_names: in label order, None where the source does not state it.

    root: what relative names start from. origin: the source with everything that pins it (absolute path, commit).
    default_split: of candidates that name none. notes: things passed over and how often, complete after the reading.
    tables: the files (tables, tars) that hold the rows; empty where every image is a file of its own. split_origin:
    what says which split an image is in, "" where nothing does. warnings: what is odd about the source as a whole.
    total: how many candidates there are, 0 = not known before they are read.
    no_label: words that mean that a row has no label, where labels are cells of a table.
    """

    candidates: Iterator[Candidate]
    root: Path
    origin: str
    class_names: list[str] | None = None
    default_split: str | None = None
    notes: Counter[str] = field(default_factory=Counter)
    tables: Sequence[Path] = ()
    split_origin: str = ""
    warnings: tuple[str, ...] = ()
    no_label: frozenset[str] = frozenset()
    total: int = 0


def path_inside(root: Path, given: str) -> Path:
    """The file a listed path means, after links. Raises RejectedImage: `outside_root`, or `bad_name`.

    root: resolved. An absolute path is accepted when it is inside, and one with backslashes where it exists with
    slashes.
    """
    if not given or "\0" in given or not is_text(given):
        raise RejectedImage("bad_name", "the path is empty or not valid text")
    if "://" in given:
        raise RejectedImage("outside_root", "URLs are not read: download the image and list the file")
    try:
        place = places.inside(root, given)
        if "\\" not in given or place.exists():
            return place
        # a list from Windows, read elsewhere
        slashed = places.inside(root, given.replace("\\", "/"))
        return slashed if slashed.exists() else place
    except places.OutsideError as error:
        raise RejectedImage("outside_root", f"leads out of {root}") from error


def pick_columns(available: Sequence[str], options: ScanOptions, where: str, image: str) -> dict[str, str]:
    """Role -> column. Raises UsageError for a column that was asked for and is not there."""
    chosen = {"image": image, "label": options.label_column}
    if options.caption_column or "caption" in available:
        chosen["caption"] = options.caption_column or "caption"
    if options.score_column:
        chosen["difficulty"] = options.score_column
    missing = [column for column in chosen.values() if column not in available]
    if missing:
        raise UsageError(
            f"{where} has no column {', '.join(missing)}; it has {', '.join(map(str, available))}",
            f"{headless(available)}name the columns with --image-column, --label-column, --caption-column and --column "
            "(of scores)",
        )
    return chosen


def headless(columns: Sequence[str]) -> str:
    """The beginning of a hint: what to do where names of columns name an image, as in a list without a header."""
    has_image = any(PurePosixPath(str(name)).suffix.lower() in IMAGE_SUFFIXES for name in columns)
    return "the first row looks like data: give the file a header line, path,label; or " if has_image else ""


def read_label(value: Any, names: Sequence[str] | None) -> str | None:
    """The class name a cell means; None where it means none, as -1 does by convention."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None  # tables with gaps hold integers as floats
    if isinstance(value, int):
        if names is None:
            return str(value) if value >= 0 else None
        return names[value] if 0 <= value < len(names) else None
    return read_text(value)


def read_difficulty(value: Any, where: str) -> float | None:
    """A score of the user's own: empty and NaN mean not scored. Raises UsageError outside [0, 1]."""
    try:
        score = math.nan if value is None or value == "" else float(value)  # "" is an empty cell of a CSV
    except (TypeError, ValueError, OverflowError):
        score = math.inf  # no number at all: refused below, as one out of range is
    if math.isnan(score):
        return None
    if not 0.0 <= score <= 1.0:
        raise UsageError(f"{where}: difficulty {shorten(value)} is not a number in [0, 1]", "0 is easy, 1 is hard")
    return score


def quoted(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) and is_text(value) else None


def is_text(name: str) -> bool:
    """False for file names that are not UTF-8: Python carries their bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_name(name: str) -> str:
    """A name that every UTF-8 writer accepts: what is no text shows as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()
