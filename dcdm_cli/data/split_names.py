"""Names of splits: what a source calls its parts, and which of train, judge and test they are.

A part whose name means nothing is never guessed at: it is an error that says how to name it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from dcdm_cli.errors import UsageError
from dcdm_cli.gate import shorten

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("judge", "val", "valid", "validation"), "judge"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Words that some people use for a split and others for something else: asked about, with this as the proposal.
GUESSES = {
    **dict.fromkeys(("dev", "development", "devel"), "judge"),
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout", "hold-out"), "test"),
}
LEFT_OUT, AS_CLASS = "none", "class"  # of a split map: not read; a class and no split
_MEANINGS = (*SPLIT_WORDS, LEFT_OUT, AS_CLASS)
_SHARD = re.compile(r"[-_.]?(?:[0-9].*)?")  # what follows a split's name in a file's: train-00000-of-00002


def read_split_map(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=SPLIT` pairs -> name in lower case -> train, judge, test, none or class. Raises UsageError."""
    meanings: dict[str, str] = {}
    for pair in pairs:
        # rpartition: names of folders may hold "="
        name, equals, meaning = (part.strip() for part in pair.rpartition("="))
        word = meaning.casefold()
        if not equals or not name or word not in _MEANINGS:
            raise UsageError(
                f"--split-map {pair!r} is not NAME=SPLIT",
                "write --split-map val=test,holdout=judge; a split is train, judge or test, none leaves a part out",
            )
        meanings[name.casefold()] = SPLIT_WORDS.get(word, word)
    return meanings


def meaning_of(word: str, split_map: Mapping[str, str]) -> str | None:
    """train, judge, test, none or class; None where the word says nothing. A map may use the source's name or ours."""
    name = word.strip().casefold()
    usual = SPLIT_WORDS.get(name)
    return split_map.get(name) or split_map.get(usual or "") or usual


def known_split(word: str, where: str) -> str:
    """train, judge or test. Raises UsageError for a word that means none of them."""
    split = SPLIT_WORDS.get(word.strip().casefold())
    if split is None:
        raise UsageError(f"{where}: {shorten(word)} is not a split", f"known: {', '.join(SPLIT_WORDS)}")
    return split


def split_of(word: str, wanted: str | None, split_map: Mapping[str, str], where: str) -> str | None:
    """The split of a part that the source calls `word`; None: the part is not read.

    wanted: the one part that is (`--split`), by the source's name or by ours; by a name that means nothing here, it is
    for training. Raises UsageError for a word that means nothing, unless another part is wanted.
    """
    meaning = meaning_of(word, split_map)
    if wanted is not None:
        chosen = word.strip().casefold() == wanted.strip().casefold() or (
            meaning is not None and meaning == meaning_of(wanted, split_map)
        )
        return (meaning or "train") if chosen and meaning != LEFT_OUT else None
    if meaning is None or meaning == AS_CLASS:
        proposal = GUESSES.get(word.strip().casefold(), "train")
        raise UsageError(
            f"{where}: {shorten(word)} is not a split",
            f"say what it is: --split-map {word}={proposal} (train, judge, test; none leaves it out), "
            "or read one split: --split train",
        )
    return None if meaning == LEFT_OUT else meaning


def word_of_file(file: PurePath, split_map: Mapping[str, str]) -> str | None:
    """The word by which a table or tar says which split it is: its name, the first word of it, or its folder's name."""
    first_word = re.split(r"[^a-z]", file.name.casefold(), maxsplit=1)[0]
    words = (file.name.partition(".")[0], first_word, file.parent.name)
    return next((word for word in words if meaning_of(word, split_map)), None)


def splits_of_files(
    files: Sequence[PurePath], wanted: str | None, split_map: Mapping[str, str]
) -> tuple[list[str | None], bool]:
    """Each file's split, and whether files are splits at all: where all have a split's name. None: not read, or no
    splits.

    Raises UsageError where some are certainly splits (`test-00000.parquet`, not `test tube.parquet`) and others not.
    """
    # A single file is the whole source, whatever it is called, unless a map says otherwise.
    words = [word_of_file(file, split_map) for file in files] if len(files) > 1 or split_map else []
    if words and all(words):
        return [split_of(str(word), wanted, split_map, str(f)) for word, f in zip(words, files, strict=True)], True
    # not strict: there are no words for a single file
    named = [file for file, word in zip(files, words, strict=False) if word and _is_shard_of(file, word)]
    if named:
        other = next(file for file, word in zip(files, words, strict=True) if not word)
        raise UsageError(
            f"{named[0].name} is a split by its name, {other.name} is not: what are its images?",
            f"say it: --split-map {other.name.partition('.')[0]}=train (judge, test; none leaves it out), "
            f"or leave it out: --exclude '{other.name}'",
            file=str(other),
        )
    return [None] * len(files), False


def _is_shard_of(file: PurePath, word: str) -> bool:
    stem = file.name.partition(".")[0].casefold()
    return stem.startswith(word.casefold()) and bool(_SHARD.fullmatch(stem[len(word) :]))
