"""Names of files in a stage's record: checked where it is read, since a run folder may be somebody else's."""

from __future__ import annotations

from pathlib import PurePath

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
