"""Where a name from a file may lead: nowhere but below the folder it belongs to. Links count as what they point at."""

from __future__ import annotations

import os
from pathlib import Path


class OutsideError(ValueError):
    """A name that means nothing below its folder."""


def inside(root: Path, name: str) -> Path:
    """The file that `name` means below `root`, all links resolved; it need not exist.

    An absolute name counts when it lies inside. Raises OutsideError for a name that leads out, by itself or through a
    link, and for one that no file can have.
    """
    if not name or "\0" in name:
        raise OutsideError(f"{name!r} is no file name")
    try:
        home = os.path.realpath(root)
        place = os.path.realpath(os.path.join(home, name))
    except (OSError, ValueError) as error:  # ValueError: what no file system can spell
        raise OutsideError(f"{name!r} is no file name: {error}") from error
    # with the separator: /run-2 begins like /run; / ends in one already
    if place != home and not place.startswith(home.rstrip(os.sep) + os.sep):
        raise OutsideError(f"{name!r} leads out of {root}")
    return Path(place)


def set_aside(folder: Path) -> Path:
    """Where the old folder waits until the new one has its place and name."""
    return folder.with_name(f".{folder.name}.old")
