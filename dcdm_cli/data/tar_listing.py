"""Listing WebDataset tars: consecutive members `<key>.jpg`, `<key>.cls`, `<key>.json`, `<key>.txt` are one sample.

The label is `.cls`, or a key of `.json`; the caption is `.txt`, or a key of `.json`. Images stay in the tar.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcdm_cli.data.archives import MAX_TEXT, Member, ends_properly, member_path, members, read_range, sample_key
from dcdm_cli.data.candidates import (
    NO_LABEL,
    Candidate,
    Listing,
    ScanOptions,
    clean_name,
    read_difficulty,
    read_label,
    read_text,
)
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.data.split_names import splits_of_files
from dcdm_cli.data.trees import IMAGE_SUFFIXES
from dcdm_cli.errors import UsageError

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MAX_NAMES = 1_000_000
_MOST_DIGITS = 18  # of a number, in a label or a range: int() refuses some thousand of them


def list_tars(files: Sequence[Path], origin: str, options: ScanOptions) -> Listing:
    """Tars called train*, test*, ... (or in folders of such names) are splits. Paths start at their common folder."""
    files = [file.absolute() for file in files]
    root = Path(os.path.commonpath([file.parent for file in files]))
    splits, are_splits = splits_of_files(files, options.split, options.split_map)
    read = [(file, split) for file, split in zip(files, splits, strict=True) if split or not are_splits]
    notes: Counter[str] = Counter()
    return Listing(
        _candidates(read, root, options, notes),
        root,
        origin,
        notes=notes,
        tables=files,
        split_origin="names of files" if are_splits else "",
        no_label=NO_LABEL,
    )


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` and `{a,b}.tar` spelled out, leading zeros kept. Raises UsageError for more than a million."""
    found = [match for form in (_RANGE, _CHOICE) if (match := form.search(pattern))]
    if not found:
        return [pattern]
    match = min(found, key=lambda one: one.start())
    if match.re is _RANGE:
        first, last = match.groups()
        # before it is spelled out: the names of a long range would fill the memory
        if max(len(first), len(last)) > _MOST_DIGITS or abs(int(last) - int(first)) >= _MAX_NAMES:
            raise UsageError(f"{pattern}: a range of more than {_MAX_NAMES} names", "use a glob: *.tar")
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        words = match.group(1).split(",")
    head, tails = pattern[: match.start()], expand_braces(pattern[match.end() :])
    return [f"{head}{word}{tail}" for word in words for tail in tails]


def _candidates(
    files: Sequence[tuple[Path, str | None]], root: Path, options: ScanOptions, notes: Counter[str]
) -> Iterator[Candidate]:
    for file, split in files:
        inside = file.relative_to(root).as_posix()
        for sample in _samples(file, notes):
            yield _candidate(file, inside, sample, split, options)
        if not ends_properly(file):  # what is missing cannot be counted, but it must not pass for all there is
            yield Candidate(inside, RejectedImage("truncated", "no end mark: the tar was cut short"), None, split)


def _samples(file: Path, notes: Counter[str]) -> Iterator[dict[str, Member]]:
    """Members by suffix, of one sample at a time."""
    sample: dict[str, Member] = {}
    current = None
    for member in members(file):
        found = sample_key(member.name)
        if found is None:
            notes["members with a name that no sample may have ignored"] += 1
            continue
        key, suffix = found
        if key != current and sample:
            yield sample
            sample = {}
        current = key
        sample.setdefault(suffix, member)
    if sample:
        yield sample


def _candidate(
    file: Path, inside: str, sample: Mapping[str, Member], split: str | None, options: ScanOptions
) -> Candidate:
    image = next((member for suffix, member in sample.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
    first = image or next(iter(sample.values()))
    name = member_path(inside, first)
    try:
        if image is None:
            raise RejectedImage("not_an_image", f"the sample has {', '.join(sample)} and no image")
        facts = _facts(file, sample)
        label = facts.get(options.label_column) if options.label_column != "label" else _label(file, sample, facts)
        return Candidate(
            name,
            Path(f"{file}{name[len(inside) :]}"),
            read_label(label, None),
            split,
            read_text(facts.get(options.caption_column or "caption")) or _text(file, sample, "txt"),
            read_difficulty(facts.get(options.score_column), name) if options.score_column else None,
        )
    except RejectedImage as error:
        return Candidate(name, error, None, split)


def _label(file: Path, sample: Mapping[str, Member], facts: Mapping[str, Any]) -> Any:
    """`class_name` of the .json, as we write it beside numbers; else `.cls`, as a number where it is one, so that a
    class map can name it."""
    name = read_text(facts.get("class_name"))
    if name is not None:
        return name
    stated = _text(file, sample, "cls")
    if stated is None:
        return facts.get("label")
    return int(stated) if stated.isascii() and stated.isdecimal() and len(stated) <= _MOST_DIGITS else stated


def _facts(file: Path, sample: Mapping[str, Member]) -> Mapping[str, Any]:
    text = _text(file, sample, "json")
    if text is None:
        return {}
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RejectedImage("bad_metadata", f"its .json cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise RejectedImage("bad_metadata", "its .json is not an object")
    return facts


def _text(file: Path, sample: Mapping[str, Member], suffix: str) -> str | None:
    member = sample.get(suffix)
    if member is None:
        return None
    try:
        return read_range(file, member.offset, member.size, MAX_TEXT).decode("utf-8-sig").strip() or None
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise RejectedImage("bad_metadata", f"its .{suffix} cannot be read: {clean_name(str(error))}") from error
