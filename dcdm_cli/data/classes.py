"""Classes of a source: the map that fixes them, their order, and those with too few images to learn from."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.data.candidates import Listing, ScanOptions, quoted
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.splits import TRAIN
from dcdm_cli.errors import NotFoundError, UsageError

# The words and separators by which `datasets` takes a folder or file for a split.
_DATASETS_SPLIT_WORDS = frozenset(
    {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"}
)
_DATASETS_SEPARATORS = re.compile(r"[-._ 0-9/]+")
_CLASS_MAP = (
    'write ["cat", "dog"] or {"cat": 0, "dog": 1}, indexes from 0; names of one index are merged into the first'
)


@dataclass(frozen=True)
class ClassMap:
    """names: in label order. meaning: what a source may call a class -> its name: by name, by the name of a class that
    is merged into it and, where no name looks like one, by index."""

    names: tuple[str, ...]
    meaning: Mapping[str, str]


def read_class_map(file: Path | None) -> ClassMap | None:
    """From a JSON list, or {name: index}. Raises NotFoundError and UsageError."""
    if file is None:
        return None
    try:
        stated = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise NotFoundError(f"no class map at {file}", "check the path given with --class-map", file=file) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the class map {file}: {error}", _CLASS_MAP, file=file) from error
    groups = _groups(stated)
    if groups is None:
        raise UsageError(f"{file} is no class map", _CLASS_MAP, file=file)
    names = tuple(group[0] for group in groups)
    meaning = {str(index): name for index, name in enumerate(names)}
    # Names last: a class that is called like a number is that class.
    return ClassMap(names, meaning | {name: group[0] for group in groups for name in group})


def _groups(stated: Any) -> list[list[str]] | None:
    """The names of each index, in label order; None for what is no class map."""
    if isinstance(stated, dict):
        # By length, then text, is the order of numbers, however many digits they have.
        indexes = sorted({str(index) for index in stated.values()}, key=lambda text: (len(text), text))
        if indexes != [str(index) for index in range(len(indexes))]:
            return None
        return [[name for name, at in stated.items() if str(at) == index] for index in indexes] or None
    if not isinstance(stated, list) or not stated or not all(isinstance(name, str) for name in stated):
        return None
    return [[name] for name in stated]


def ordered_classes(listing: Listing, found: set[str]) -> list[str]:
    """The source's own order; else by number where all names are numbers; else by name."""
    if listing.class_names is not None:
        return [*listing.class_names, *sorted(found - set(listing.class_names))]
    numbers = all(name.isascii() and name.isdecimal() for name in found)
    return sorted(found, key=lambda name: (_by_number(name) if numbers else (), name))


def _by_number(digits: str) -> tuple[int, str]:
    """Orders as the number does, which may have more digits than Python reads."""
    digits = digits.lstrip("0")
    return len(digits), digits


def check_twins(class_names: Iterable[str]) -> None:
    """Two spellings of one class would share a folder on many file systems. Raises UsageError."""
    spellings: dict[str, str] = {}
    for name in class_names:
        # again: casefold takes some letters apart
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if folded in spellings:
            raise UsageError(
                f"the classes {spellings[folded]!r} and {name!r} differ only in case or in how accents are encoded",
                "rename one of them, or merge them: --class-map FILE with both names at one index",
            )
        spellings[folded] = name


@dataclass(frozen=True)
class LeftOut:
    """A class that is not used. train: its different training images; images: all it has."""

    name: str
    train: int
    images: int


def settle_sparse(
    class_names: Sequence[str],
    labels: np.ndarray,
    splits: np.ndarray,
    contents: np.ndarray,
    options: ScanOptions,
) -> list[LeftOut]:
    """The classes to leave out: with `options.sparse_classes` "drop", those of fewer than `options.min_train` different
    training images, of which nothing could be learnt. None in a source without training images.

    labels int [N], splits int8 [N] codes, contents bytes [N]. Raises UsageError with "stop", and where none is left.
    """
    in_train = splits == TRAIN
    if options.sparse_classes == "keep" or not in_train.any():
        return []
    pairs = np.unique(np.rec.fromarrays([labels[in_train], contents[in_train]]))
    different = np.bincount(pairs["f0"], minlength=len(class_names))
    every = np.bincount(labels, minlength=len(class_names))
    few = np.flatnonzero(different < options.min_train).tolist()
    sparse = [LeftOut(class_names[i], int(different[i]), int(every[i])) for i in few]
    if sparse and (options.sparse_classes == "stop" or len(sparse) == len(class_names)):
        raise UsageError(
            f"{len(sparse)} of {len(class_names)} classes have fewer than {options.min_train} different training "
            f"images: {_counted(sparse)}",
            "add images, merge the classes with others (--class-map), or leave them out: --sparse-classes drop",
        )
    return sparse


def left_out_warning(left: Sequence[LeftOut], least: int) -> Iterator[str]:
    if left:
        yield (
            f"{len(left)} classes are left out, with fewer than {least} different training images: {_counted(left)}. "
            "Add images, merge them with others (--class-map), or see --sparse-classes keep|stop"
        )


def untrainable_warnings(manifest: Manifest) -> Iterator[str]:
    """Of a scored manifest: classes that fine-tuning will refuse, because no training image of theirs is both scored
    and trusted."""
    train = manifest.split("train")
    scored, suspect = np.isfinite(train.column("difficulty")), train.column("suspect_label")
    for what, usable in (("scored", scored), ("trusted", scored & ~suspect)):
        counts = train.select(usable).class_counts()
        without = [name for name, count in zip(manifest.class_names, counts, strict=True) if not count]
        if without:
            remedy = "; dcdm finetune --keep-suspects trains on doubtful labels" if what == "trusted" else ""
            yield (
                f"no training image of {len(without)} classes is {what}: {quoted(without)}. Fine-tuning needs one of "
                f"each: add images, correct labels, or leave the class out (--exclude){remedy}"
            )
            return  # what is not scored is not trusted either: said once


def _counted(classes: Sequence[LeftOut], most: int = 5) -> str:
    said = [f"{one.name!r} ({one.train} in train, {one.images} in all)" for one in classes[:most]]
    return ", ".join(said) + (f" and {len(classes) - most} more" if len(classes) > most else "")


def class_warnings(class_names: Sequence[str], labels: np.ndarray) -> Iterator[str]:
    used = np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, used, strict=True) if not count]
    risky = [name for name in class_names if is_split_like(name)]
    if empty:
        yield f"no images in {quoted(empty)}: the class keeps its index"
    if len(class_names) == 1:
        yield f"there is only one class, {class_names[0]!r}: difficulty needs at least two to tell apart"
    if risky:
        yield f"{quoted(risky)}: `datasets` takes such a class folder for a split unless data_files is given"


def is_split_like(name: str) -> bool:
    """Whether a word of the name makes `datasets` take a folder of that name for a split."""
    return not _DATASETS_SPLIT_WORDS.isdisjoint(_DATASETS_SEPARATORS.split(name.casefold()))
