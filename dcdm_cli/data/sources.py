"""Scanning: from any source the user has to a checked manifest.

Every image is decoded once, which is the only honest test of a file. Files of a folder and members of a tar are
referenced where they are, never copied or changed; images inside tables are written below `materialise`, named by their
content.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdm_cli.data.appearance import animation_warnings, shape_warnings, value_warnings
from dcdm_cli.data.archives import file_stamp
from dcdm_cli.data.candidates import Listing, Rejection, ScanOptions
from dcdm_cli.data.classes import (
    ClassMap,
    LeftOut,
    check_twins,
    class_warnings,
    left_out_warning,
    ordered_classes,
    read_class_map,
    settle_sparse,
)
from dcdm_cli.data.copies import Copies, copy_warnings, find_copies
from dcdm_cli.data.examine import Examined, examine_all
from dcdm_cli.data.folders import holds_images, list_folder
from dcdm_cli.data.hub import list_hub
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.data.listings import has_images, list_parquet, list_saved_dataset
from dcdm_cli.data.lists import list_manifest
from dcdm_cli.data.manifest import SCHEMA, Manifest, manifest_classes
from dcdm_cli.data.remedies import no_images, no_source, repair
from dcdm_cli.data.split_names import known_split, meaning_of
from dcdm_cli.data.splits import NONE, SPLITS, assign_codes, split_codes
from dcdm_cli.data.tar_listing import expand_braces, list_tars
from dcdm_cli.data.trees import GENERATED_MARK, OWN, Tree, is_excluded, is_run_folder, lies_in_own_folder
from dcdm_cli.data.understood import SplitFacts, empty_warnings, split_facts
from dcdm_cli.errors import DcdmError, NotFoundError, UsageError
from dcdm_cli.files import atomic_path, hash_json
from dcdm_cli.run.progress import Job

_MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
_SHOWN = 3


@dataclass(frozen=True)
class Scan:
    """manifest: the usable images, in the source's order. rejected: the others. origin: the source, pinned.

    splits: what is in which split, and why; named: the splits that the source itself has images in. left_out: classes
    that are not used. copies: rows of the manifest that show the same picture. class_map: the names that a class map
    fixes, with those left out.
    """

    manifest: Manifest
    rejected: tuple[Rejection, ...]
    warnings: tuple[str, ...]
    origin: str
    splits: tuple[SplitFacts, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    copies: Copies = field(default_factory=Copies)
    class_map: tuple[str, ...] | None = None
    named: tuple[str, ...] = ()


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
    class_map = read_class_map(options.class_map)
    examined = examine_all(listing, class_map.meaning if class_map else None, options, spool, key, job)
    columns = _Columns.of(examined) if examined.usable else None
    _check_rejected(examined, columns, listing, options)
    if columns is None and examined.rejected:
        shown = "; ".join(map(_reason, examined.rejected[:_SHOWN])) + (
            ", ..." if len(examined.rejected) > _SHOWN else ""
        )
        what = f"none of the {len(examined.rejected)} images can be used: {shown}"
        raise TooManyRejectedError(what, repair(examined.rejected, listing, options), examined.rejected)
    if columns is None:
        raise no_images(source, searched_folder(source), options)
    return _settled(listing, examined, columns, class_map, options, spool)


def _settled(
    listing: Listing,
    examined: Examined,
    columns: _Columns,
    class_map: ClassMap | None,
    options: ScanOptions,
    spool: Path,
) -> Scan:
    names = list(class_map.names) if class_map else ordered_classes(listing, set(columns.names))
    check_twins(names)
    before, columns = columns.split, columns.settled(names, options)
    # after the splits: images that are set aside teach nothing
    left = settle_sparse(names, columns.labels, columns.split, columns.content, options)
    columns, kept, names = columns.without({one.name for one in left}, names)
    table = _mapped_table(examined, columns, kept, spool / "manifest.arrow")
    origin = listing.split_origin or ("--split" if options.split else "")
    facts = split_facts(before[kept], columns.split, columns.labels, origin)
    copies = find_copies(columns.content, columns.split, columns.labels)
    warnings = (
        *listing.warnings,
        *left_out_warning(left, options.min_train),
        *class_warnings(names, columns.labels),
        *copy_warnings(copies, table),
        *(empty_warnings(facts) if options.test_fraction else ()),  # a fraction of 0 wants no test split
        *value_warnings(examined, options.decode),
        *animation_warnings(examined),
        *shape_warnings(table["width"].to_numpy(), table["height"].to_numpy(), options.decode),
        *(f"{count} {note}" for note, count in sorted(listing.notes.items())),
    )
    manifest = Manifest(table, tuple(names), listing.root)
    rejected, fixed = tuple(examined.rejected), class_map.names if class_map else None
    named = tuple(SPLITS[code] for code in np.unique(before[before != NONE]))
    return Scan(manifest, rejected, warnings, listing.origin, facts, tuple(left), copies, fixed, named)


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
            # a fixed width: an object per image would take more than `scan_on_disk` promises
            content.append(np.array(table["content"].to_pylist(), "S32"))
        columns = (np.concatenate(parts) for parts in (name, split, content))
        return cls(tuple(known), *columns, labels=np.zeros(0, np.int32))

    def settled(self, class_names: Sequence[str], options: ScanOptions) -> _Columns:
        """With labels, and every image in a split."""
        position = {name: label for label, name in enumerate(class_names)}
        labels = np.array([position[name] for name in self.names], np.int32)[self.name]
        how = {"judge_fraction": options.judge_fraction, "test_fraction": options.test_fraction}
        codes = assign_codes(self.split, labels, self.content, **how, test_from=options.test_from)
        return replace(self, labels=labels, split=codes)

    def without(self, left: set[str], class_names: Sequence[str]) -> tuple[_Columns, np.ndarray, list[str]]:
        """Of settled columns those of the other classes, which rows these are (bool [N]), and their names."""
        stays = np.array([name not in left for name in class_names], bool)
        kept = stays[self.labels]
        labels = (np.cumsum(stays) - 1).astype(np.int32)[self.labels[kept]]
        parts = {"name": self.name[kept], "split": self.split[kept], "content": self.content[kept]}
        return replace(self, labels=labels, **parts), kept, [name for name in class_names if name not in left]


def _mapped_table(examined: Examined, columns: _Columns, kept: np.ndarray, file: Path) -> pa.Table:
    """The manifest's rows as an Arrow file, which the system pages in and out as they are needed. kept: bool, which of
    the rows looked at."""
    words, start, read = np.array(SPLITS), 0, 0
    with atomic_path(file, durable=False) as part, pa.ipc.new_file(str(part), SCHEMA) as writer:
        for whole in examined.tables():
            chunk = whole.filter(pa.array(kept[read : read + whole.num_rows]))
            read += whole.num_rows
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
        return pa.ipc.open_file(source).read_all()  # the table keeps the file mapped beyond this block


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
        return error.errno  # that it cannot be read is a fact about the source too


# Finding the reader


def _open_listing(source: str, options: ScanOptions, materialise: Path) -> Listing:
    if source == "-":
        return _only_split(_without_excluded(list_manifest(None, options), options), options)
    if _is_on_hub(source):
        return _without_excluded(list_hub(source.removeprefix("hf:"), materialise, options), options)
    try:
        listing = _open_path(source.removeprefix("hf:"), options, materialise)
        return _only_split(_without_excluded(listing, options), options)
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
    notes: Counter[str] = Counter()
    files = [path] if path.is_file() else _matching(path, notes)
    listing = _open_files(source, path, files, options, materialise)
    return _with_warnings(listing, notes)


def _open_files(source: str, path: Path, files: list[Path], options: ScanOptions, materialise: Path) -> Listing:
    """path: what the files were named by, a file or a pattern."""
    if not files:
        raise NotFoundError(f"no such file or folder: {source}", "a dataset on the hub is written hf:owner/name")
    if all(file.suffix.lower() == ".parquet" for file in files):
        return list_parquet(files, materialise, str(path.absolute()), options)
    if all(file.suffix.lower() == ".tar" for file in files):
        return list_tars(files, str(path.absolute()), options)
    if len(files) == 1 and files[0].suffix.lower() in _MANIFEST_SUFFIXES:
        return list_manifest(files[0], options)
    raise no_source(source, files[0])


def _matching(path: Path, notes: Counter[str]) -> list[Path]:
    """Files of a glob or of a brace range; a name that a range spells out must exist. What `**` finds in folders of our
    own is passed over, and counted in `notes`."""
    found: list[Path] = []
    for pattern in expand_braces(str(path)):
        files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        parts = Path(pattern).parts
        if "**" in parts:
            kept = [file for file in files if not lies_in_own_folder(file, parts.index("**"))]
            notes.update({OWN: len(files) - len(kept)} if len(kept) < len(files) else {})
            files = kept
        if not files and pattern != str(path):
            raise NotFoundError(f"no such file: {pattern}", "check the ends of the range in braces", file=pattern)
        found += files
    return found


def searched_folder(source: str) -> Path | None:
    """The folder in which images are looked for; None where a file, standard input or a dataset on the hub is named."""
    if source == "-" or _is_on_hub(source):
        return None
    path = Path(source.removeprefix("hf:")).expanduser()
    if os.path.exists(path):  # unlike Path.exists, False where it may not be looked at, which listing it says
        return path.resolve() if path.is_dir() else None
    fixed = next((number for number, part in enumerate(path.parts) if glob.has_magic(part)), None)
    return None if fixed is None else Path(*path.parts[:fixed]).resolve()


def _open_folder(folder: Path, options: ScanOptions, materialise: Path) -> Listing:
    # also where its folder train/ is named
    generated = folder if (folder / GENERATED_MARK).is_file() else folder.parent
    if (generated / GENERATED_MARK).is_file():
        return _open_generated(generated, options, materialise)
    if is_run_folder(folder):
        raise UsageError(
            f"{folder} is a run folder, which holds results",
            f"name the images; those that a run has generated are in {folder / 'generated'}. Where images of your own "
            "lie among the results, move them to a folder of their own",
            file=folder,
        )
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return list_saved_dataset(folder, materialise, options)
    if not holds_images(folder, options):
        return _open_files_in(folder, options, materialise) or list_folder(folder, options)
    return list_folder(folder, options)


def _open_generated(folder: Path, options: ScanOptions, materialise: Path) -> Listing:
    """A set of ours: classes by their names, in the order they were generated in; folders may be called otherwise."""
    listed = folder / "train" / "metadata.jsonl"
    if listed.is_file():
        label = "class_name" if options.label_column == "label" else options.label_column
        # its paths start from its own folder, whatever --image-root says
        found = list_manifest(listed, replace(options, label_column=label, image_root=None))
    else:
        found = _open_files_in(folder / "data", options, materialise) or list_folder(folder, options)
    names = manifest_classes(folder / "samples.parquet")
    return replace(found, class_names=list(names) if names and options.label_column == "label" else found.class_names)


def _open_files_in(folder: Path, options: ScanOptions, materialise: Path) -> Listing | None:
    """Tables or tars below a folder that has no image files. A table without images beside tars describes them."""
    tree = Tree(folder, options.follow_links, options.exclude)
    found = sorted(tree.files({".parquet", ".tar"}))
    tables, tars = ([file for file in found if file.suffix.lower() == suffix] for suffix in (".parquet", ".tar"))
    listing = _list_either(folder, tables, tars, options, materialise)
    return listing and _with_warnings(listing, tree.notes)


def _list_either(
    folder: Path, tables: list[Path], tars: list[Path], options: ScanOptions, materialise: Path
) -> Listing | None:
    if tables and tars:
        with_images = [table for table in tables if has_images(table, options)]
        if with_images:
            raise UsageError(
                f"{folder} holds tars and Parquet files, and both hold images ({tars[0].name}, {with_images[0].name})",
                f"say which: '{folder}/*.tar' or '{folder}/*.parquet'",
                file=folder,
            )
        listing = list_tars(tars, str(folder), options)
        column = options.image_column
        said = f"the images are read from tars: {len(tables)} Parquet files have no column {column!r}"
        return replace(listing, warnings=(*listing.warnings, said))
    if tables:
        return list_parquet(tables, materialise, str(folder), options)
    return list_tars(tars, str(folder), options) if tars else None


def _with_warnings(listing: Listing, notes: Counter[str]) -> Listing:
    """notes: counted before any image is read; the listing's own are counted while that goes on, and kept for it."""
    said = (f"{count} {note}" for note, count in sorted(notes.items()))
    return replace(listing, warnings=(*listing.warnings, *said))


def _only_split(listing: Listing, options: ScanOptions) -> Listing:
    """Without splits in the source, the option says which split the rows are; with them, which rows to keep, which the
    readers have done where they know it beforehand."""
    if not options.split:
        return listing
    wanted = meaning_of(options.split, options.split_map)
    if wanted is None and not listing.split_origin:  # nothing but this word says then what the rows are
        known_split(options.split, "--split")
    kept = (one for one in listing.candidates if one.split in (None, wanted or "train"))
    return replace(listing, candidates=kept, default_split=wanted or "train", total=0)  # total: not known any more


def _without_excluded(listing: Listing, options: ScanOptions) -> Listing:
    if not options.exclude:
        return listing
    kept = (one for one in listing.candidates if not is_excluded(one.name, options.exclude))
    return replace(listing, candidates=kept, total=0)


# Rules about the whole set


def _check_rejected(examined: Examined, columns: _Columns | None, listing: Listing, options: ScanOptions) -> None:
    used, rejected = examined.usable, examined.rejected
    share = len(rejected) / max(1, used + len(rejected))
    limit = 0.0 if options.strict else options.max_bad
    if share <= limit:
        return
    _check_unlabelled(rejected, set(columns.split.tolist()) if columns else set())
    reasons = ", ".join(f"{count} {reason}" for reason, count in _counted(rejected))
    raise TooManyRejectedError(
        f"{len(rejected)} of {used + len(rejected)} images cannot be used, more than {limit:.3g} of them ({reasons}): "
        + "; ".join(map(_reason, rejected[:_SHOWN]))
        + (", ..." if len(rejected) > _SHOWN else ""),
        f"{repair(rejected, listing, options)}, or allow more with --max-bad"
        + (" and without --strict" if options.strict else ""),
        rejected,
    )


def left_out_sentence(rejected: Sequence[Rejection], file: Path) -> str:
    """How many images a scan that went on left out, why, with an example of each reason. file: where all are listed."""
    examples = {one.reason: one.path for one in reversed(rejected)}  # reversed, so that the first of each reason stays
    said = ", ".join(f"{count} {reason}, such as {examples[reason]}" for reason, count in _counted(rejected))
    many = "1 image is" if len(rejected) == 1 else f"{len(rejected)} images are"
    return f"{many} left out: {said}; all in {file}"


def _counted(rejected: Sequence[Rejection]) -> list[tuple[str, int]]:
    """(reason, how many), the most common first."""
    return Counter(one.reason for one in rejected).most_common()


def _reason(rejection: Rejection) -> str:
    return f"{rejection.path}: {rejection.reason}" + (f" ({rejection.detail})" if rejection.detail else "")


def _check_unlabelled(rejected: Sequence[Rejection], used: set[int]) -> None:
    """Public test sets often keep their labels back. used: codes of the splits with usable images."""
    for split in SPLITS:
        bad = [one for one in rejected if one.split == split]
        if bad and SPLITS.index(split) not in used and all(one.reason == "no_label" for one in bad):
            raise UsageError(
                f"the split {split!r} has no labels: {len(bad)} images, such as {_reason(bad[0])}",
                f"leave it out: --split-map {split}=none" + ("" if split == "train" else ", or: --split train"),
            )
