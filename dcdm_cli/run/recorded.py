"""What a stage's record says of files and of itself: checked where it is read, since it may be somebody else's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Protocol

from dcdm_cli.errors import MismatchError
from dcdm_cli.gate import shorten
from dcdm_cli.run.seals import Seal


def refuse_outward(seals: dict[str, Seal]) -> dict[str, Seal]:
    """Of what was read. Raises ValueError for a name that leads out of the run folder. Absolute ones are of the user's
    own base model."""
    for name in seals:
        if not name or "\0" in name or ".." in PurePath(name).parts:
            raise ValueError(f"{shorten(name)} names no file of the run folder")
    return seals


def refuse_elsewhere(seals: dict[str, Seal]) -> dict[str, Seal]:
    """Of what was written: nothing is, outside of the run folder. Raises ValueError."""
    for name in refuse_outward(seals):
        if PurePath(name).is_absolute():
            raise ValueError(f"{shorten(name)} lies outside of the run folder")
    return seals


def of_another_stage(file: Path, stage: str, again: str) -> MismatchError:
    """stage: as the record in the file says."""
    return MismatchError(f"{file} is damaged: it says that it is of the stage {shorten(stage)}", again, file=file)


class Recorded(Protocol):
    """Of a stage's record, what says where it came from."""

    @property
    def inputs(self) -> dict[str, str]: ...

    @property
    def read(self) -> dict[str, Seal]: ...

    @property
    def id(self) -> str: ...


def left_by_the_gone(records: Mapping[str, Recorded], pipeline: Collection[str]) -> dict[str, list[Seal]]:
    """Name of a file -> what it was when a stage read it that was made from one whose record is gone by now: that one
    may have rewritten it, and it is nobody's damage. Only of those that the records there are would be made into.
    pipeline: names of stages that are made from each other."""
    found: dict[str, list[Seal]] = {}
    for record in records.values():
        made_from = {stage: id for stage, id in record.inputs.items() if stage in pipeline and id}
        known = {stage: records[stage].id for stage in made_from if stage in records}
        if len(known) < len(made_from) and all(made_from[stage] == id for stage, id in known.items()):
            for name, was in record.read.items():
                found.setdefault(name, []).append(was)
    return found
