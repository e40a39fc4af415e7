"""Class folders: `root[/split]/class/.../image`, and what stands beside the images.

What a folder means is read off its name and its content, never guessed: a layout with two readings is refused, with
both of them named.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcdm_cli.data.beside import Beside, has_metadata
from dcdm_cli.data.candidates import Candidate, Listing, ScanOptions, is_text, path_inside, quoted
from dcdm_cli.data.images import RejectedImage
from dcdm_cli.data.split_names import AS_CLASS, GUESSES, LEFT_OUT, SPLIT_WORDS, meaning_of, split_of
from dcdm_cli.data.trees import Tree
from dcdm_cli.errors import UsageError

SplitFolder = tuple[str | None, Path]  # a split, None where the source has none, and the folder of its class folders


def list_folder(root: Path, options: ScanOptions) -> Listing:
    """Splits are folders whose name says so (or `options.split_map`) and that hold class folders, where all top-level
    folders with images are such. Raises UsageError for a layout with more than one reading."""
    tree = Tree(root, options.follow_links, options.exclude)
    tops = tree.filled(root)
    parts = _split_parts(tree, tops, options)
    if not parts and len(tops) == 1 and options.label_column == "label":
        _refuse_wrapper(tree, tops[0], options)
    parts = parts or [(None, root)]
    beside = Beside(root, options)
    if (options.score_column or options.caption_column) and not any(has_metadata(top) for top in (root, *tops)):
        raise UsageError(
            f"{root} is a tree of class folders, which has no columns",
            "name images, captions and scores in a metadata.jsonl, or in a CSV or JSONL file and pass that file",
        )
    classes = {top: tree.filled(top) for _, top in parts}
    names = {folder.name for folders in classes.values() for folder in folders if is_text(folder.name)}
    candidates = _candidates(tree, root, parts, beside)
    is_split = parts[0][0] is not None
    origin = f"folders {_listed([top for _, top in parts])}" if is_split else ""
    warnings = (*_passed_over(tree, root, parts), *([] if is_split else _look_like_parts(tree, classes[root])))
    return Listing(
        candidates,
        root,
        str(root),
        None if beside.names_classes else sorted(names) or None,  # what a column names is known once it is read
        notes=tree.notes,
        split_origin=origin,
        warnings=tuple(warnings),
    )


def holds_images(root: Path, options: ScanOptions) -> bool:
    """Whether there is any image file below the folder."""
    return Tree(root, options.follow_links, options.exclude).has_images(root)


@dataclass(frozen=True)
class _Kinds:
    """The top-level folders by what they are. flat: called like a split, with images but no class folders in it;
    asked: called like what some people use for a split."""

    splits: list[SplitFolder]
    classes: list[Path]
    flat: list[Path]
    asked: list[Path]


def _split_parts(tree: Tree, tops: Sequence[Path], options: ScanOptions) -> list[SplitFolder]:
    """The parts of a source with splits; none where the top-level folders are classes."""
    kinds = _kinds(tree, tops, options)
    # --split says which reading is meant: nothing else needs an answer then.
    if kinds.splits and options.split is not None:
        return _chosen(kinds, tops, options)
    # Before mixtures in general: this kind has a remedy of its own.
    if kinds.flat and any(split == "train" for split, _ in kinds.splits) and not (kinds.classes or kinds.asked):
        _refuse_unlabelled(tree.root, kinds)
    if kinds.splits and (kinds.classes or kinds.flat or kinds.asked):
        _refuse_mixed(tree.root, kinds)
    if kinds.asked:
        _refuse_mixed(tree.root, replace(kinds, splits=[]))
    if kinds.flat and not kinds.classes:
        names = ",".join(f"{top.name}=class" for top in kinds.flat)
        raise UsageError(
            f"{_listed(kinds.flat)} in {tree.root} are called like splits and hold images, but no class folders",
            f"sort the images into class folders, name their labels in a CSV file and pass that, "
            f"or say that these are classes: --split-map {names}",
            file=tree.root,
        )
    return kinds.splits


def _kinds(tree: Tree, tops: Sequence[Path], options: ScanOptions) -> _Kinds:
    kinds = _Kinds([], [], [], [])
    for top in tops:
        name = top.name.casefold()
        meaning = meaning_of(name, options.split_map)
        # Only where it decides: whether a folder is filled takes a walk through it.
        has_classes = (meaning or name in GUESSES or options.split is not None) and bool(tree.filled(top))
        stated = name in options.split_map
        if meaning == LEFT_OUT:
            continue
        if meaning in SPLIT_WORDS and (stated or has_classes or has_metadata(top)):
            kinds.splits.append((meaning, top))
        elif meaning in SPLIT_WORDS:
            kinds.flat.append(top)
        elif has_classes and options.split is not None and name == options.split.casefold():
            kinds.splits.append(("train", top))  # as in `split_of`: a name that means nothing here is for training
        elif has_classes and name in GUESSES and meaning != AS_CLASS:
            kinds.asked.append(top)
        else:
            kinds.classes.append(top)
    return kinds


def _chosen(kinds: _Kinds, tops: Sequence[Path], options: ScanOptions) -> list[SplitFolder]:
    """The one part that is to be read, whatever the others are."""
    named = [(split_of(top.name, options.split, options.split_map, str(top)), top) for _, top in kinds.splits]
    found: list[SplitFolder] = [(split, top) for split, top in named if split]
    if not found:
        raise UsageError(
            f"{options.split!r} is not a split of this source, which has {_listed(tops)}",
            f"name one of them: --split {kinds.splits[0][1].name}",
        )
    return found


def _refuse_mixed(root: Path, kinds: _Kinds) -> None:
    others = [*kinds.classes, *kinds.flat, *kinds.asked] if kinds.splits else kinds.asked
    splits = [top for _, top in kinds.splits]
    said = f"{_listed(splits)} are splits by their names, " if splits else ""
    first = others[0].name
    proposal = GUESSES.get(first.casefold(), "train")
    as_classes = ",".join(f"{top.name}=class" for top in (*splits, *kinds.asked, *kinds.flat))
    raise UsageError(
        f"{root}: {said}{_listed(others)} {'are' if len(others) > 1 else 'is'} not: what are the images there?",
        f"say it: --split-map {first}={proposal} (train, judge or test), leave the folder out: --exclude {first}, "
        f"or, if all of these folders are classes: --split-map {as_classes}",
        file=root,
    )


def _refuse_unlabelled(root: Path, kinds: _Kinds) -> None:
    """As competitions lay out their images: the ones to train on by class, the others without a label."""
    splits = [top for _, top in kinds.splits]
    left_out = ",".join(f"{top.name}=none" for top in kinds.flat)
    classes = ",".join(f"{top.name}=class" for top in (*splits, *kinds.flat))
    one = len(kinds.flat) == 1
    raise UsageError(
        f"{root}: {_listed(kinds.flat)} {'has' if one else 'have'} no class folders, as {_listed(splits)} "
        f"{'has' if len(splits) == 1 else 'have'}: nothing says what the images in {'it' if one else 'them'} are of",
        f"leave {'it' if one else 'them'} out: --split-map {left_out}, name their labels in a metadata.csv beside "
        f"them, or, if all of these folders are classes: --split-map {classes}",
        file=root,
    )


def _refuse_wrapper(tree: Tree, top: Path, options: ScanOptions) -> None:
    """A folder around the class folders, as archives unpack, would be taken for the only class."""
    if options.split_map.get(top.name.casefold()) == AS_CLASS:
        return
    inner = top
    while not tree.has_own_images(inner) and (below := tree.filled(inner)):
        if len(below) > 1 or meaning_of(below[0].name, options.split_map) in SPLIT_WORDS:
            break
        inner = below[0]
    else:
        return
    here = Path.cwd()
    shown = inner.relative_to(here) if inner.is_relative_to(here) else inner
    raise UsageError(
        f"{tree.root} has images in one folder only, {top.name}/: it is no class if those are {_listed(below)}",
        f"name the folder that holds them: dcdm score {shlex.quote(str(shown))}, "
        f"or, if all images are of one class: --split-map {top.name}=class",
        file=tree.root,
    )


def _passed_over(tree: Tree, root: Path, parts: Sequence[SplitFolder]) -> Iterator[str]:
    empty = {
        folder.relative_to(root).as_posix()
        for top in {root, *(top for _, top in parts)}
        for folder in tree.folders(top)
        if is_text(folder.name) and not tree.has_images(folder)
    }
    if empty:
        yield f"folders without images passed over: {quoted(sorted(empty))}"


def _look_like_parts(tree: Tree, classes: Sequence[Path]) -> Iterator[str]:
    """Folds, years or cameras, with the classes one level further down."""
    below = [{folder.name for folder in tree.filled(top)} for top in classes]
    shared = set.intersection(*below) if len(below) > 1 else set()
    if shared and not any(tree.has_own_images(top) for top in classes):
        yield (
            f"the folders {_listed(classes)} are taken for classes, and all hold the same subfolders "
            f"({quoted(sorted(shared))}): if those are the classes, say what the upper ones are: "
            f"--split-map {','.join(f'{top.name}=train' for top in classes[:3])}"
        )


def _candidates(tree: Tree, root: Path, parts: Sequence[SplitFolder], beside: Beside) -> Iterator[Candidate]:
    # Beside folders of splits: listed all the same, so that they are counted as left out.
    if all(top != root for _, top in parts):
        for path in tree.images(root, deep=False):
            yield _file_candidate(tree, path, None, None, beside)
    for split, top in parts:
        for path in tree.images(top, deep=False):  # beside the class folders: of no class, unless metadata says it
            yield _file_candidate(tree, path, None, split, beside)
        for folder in tree.folders(top):
            for path in tree.images(folder):
                yield _file_candidate(tree, path, folder.name, split, beside)


def _file_candidate(tree: Tree, path: Path, label: str | None, split: str | None, beside: Beside) -> Candidate:
    name = path.relative_to(tree.root).as_posix()
    image: Path | RejectedImage = path
    try:
        if not is_text(name):
            raise RejectedImage("bad_name", "the name is not UTF-8")
        if tree.follow:  # the only way out: without --follow-links no link is listed
            path_inside(tree.root, name)
        known = beside.of(path, tree.notes)
    except RejectedImage as error:
        return Candidate(name, error, label, split)
    return Candidate(name, image, known.label or label or known.bare_label, split, known.caption, known.difficulty)


def _listed(folders: Sequence[Path], most: int = 6) -> str:
    names = [f"{folder.name}/" for folder in folders[:most]]
    return ", ".join(names) + (f" and {len(folders) - most} more" if len(folders) > most else "")
