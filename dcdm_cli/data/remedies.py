"""What helps where a source holds nothing that can be used: the hints of the errors of a scan."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcdm_cli.data.candidates import Listing, Rejection, ScanOptions, clean_name
from dcdm_cli.data.trees import IMAGE_SUFFIXES, Tree
from dcdm_cli.errors import NotFoundError, UsageError

_SHOWN = 5
_NO_SOURCES = {
    ".json": "lists are .jsonl, with one object per line, or .csv: jq -c '.[]' {file} > {stem}.jsonl",
    ".txt": "a list is a .csv with a header line, path,label, or a .jsonl with one object per line",
    ".xlsx": "save the sheet as .csv, in UTF-8, and pass that",
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "unpack it and pass the folder"),
    **dict.fromkeys(IMAGE_SUFFIXES, "pass the folder that holds one folder of images per class"),
}


def no_source(source: str, file: Path) -> UsageError:
    """For a file that is no source of images, by its suffix."""
    usual = "give a folder, or .parquet, .tar, .csv or .jsonl files"
    known = _NO_SOURCES.get(file.suffix.lower(), usual)
    words = {"file": shlex.quote(str(file)), "stem": shlex.quote(str(file.with_suffix("")))}
    return UsageError(f"{source} is no source of images", known.format(**words), file=source)


def no_images(source: str, folder: Path | None, options: ScanOptions) -> NotFoundError:
    """For a source without images. folder: where they were looked for, if in one: which files are there instead."""
    counts = Tree(folder, options.follow_links, options.exclude).ignored() if folder else Counter[str]()
    others = [f"{count} {clean_name(suffix) or 'without a suffix'}" for suffix, count in counts.most_common(_SHOWN)]
    said = f"; the files there are {', '.join(others)}" if others else ""
    usual = "give a folder with one subfolder per class, Parquet files, tars, a CSV or JSONL file, or hf:owner/name"
    read = f"convert them to one of {', '.join(sorted(IMAGE_SUFFIXES))}, or "
    where = f" (split {options.split})" if options.split else ""
    return NotFoundError(f"no images found in {source}{where}{said}", (read if others else "") + usual)


def repair(rejected: Sequence[Rejection], listing: Listing, options: ScanOptions) -> str:
    """What helps against the most common reason for which images are left out."""
    reason = Counter(one.reason for one in rejected).most_common(1)[0][0]
    those = [one for one in rejected if one.reason == reason]
    in_folder = not listing.no_label  # a list or a table has cells that mean "no label"
    if reason == "no_label" and not options.class_map:
        return _label(those, options, in_folder=in_folder)
    if reason == "outside_root" and not listing.tables and not in_folder:
        return _root(those)
    return "repair or remove them"


def _label(rejected: Sequence[Rejection], options: ScanOptions, *, in_folder: bool) -> str:
    if not in_folder:
        return f"write a label in every row, or name another column than {options.label_column}: --label-column NAME"
    named = shlex.quote(rejected[0].path) if len(rejected) == 1 else "NAME,NAME"
    return (
        "sort them into one folder per class, list their labels in a metadata.csv beside them (file_name,label), "
        f"or leave them out: --exclude {named}"
    )


def _root(rejected: Sequence[Rejection]) -> str:
    """For listed paths that lead out of the folder they start from."""
    paths = [one.path for one in rejected]
    if any("://" in path for path in paths):
        return "download the images and list the files"
    folder = "FOLDER"
    if all(map(os.path.isabs, paths)):
        folder = shlex.quote(os.path.commonpath([os.path.dirname(path) for path in paths]))
    return f"name the folder that holds all images, which relative paths start from: --image-root {folder}"
