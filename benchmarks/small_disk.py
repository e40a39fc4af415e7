"""A real file system that fills up while a stage writes: for `reliability.py`."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trials
from place import OPTIONAL, STAGES, Place

MIB = 1024**2
FULL = (0, 20)  # exit codes where there may be room or not


def small_disk(place: Place, count: int) -> dict[str, Any]:
    """A stage on a file system with room for a part of what it writes: exit code 20, or the end where it was enough
    after all; `dcdm check` finds no damage; with room, the same command ends with the files of a run that nothing
    disturbed. Where mounting is not allowed, none is tried."""
    place.prepare_optional()
    draw, bad, codes, elsewhere = random.Random(5), [], {}, place.run
    turns = (*STAGES, *OPTIONAL)
    with _mounted(place.root / "disk") as disk:
        if disk is None:
            return {"count": 0, "codes": {}, "bad": 0, "first_bad": []}
        place.run = disk / "run"
        for turn in range(count):
            stage = turns[turn % len(turns)]
            place.reset(f"before-{stage}")
            ballast = _fill(disk, int(draw.uniform(0, 0.9) * _grown(place, stage)))
            ended = place.go(stage)
            broken, checked = trials.unreadable(place.run), trials.run(["check", "--run", place.run], place.said)
            ballast.unlink()
            again = place.go(stage)
            codes[str(ended.code)] = codes.get(str(ended.code), 0) + 1
            well = ended.code in FULL and ended.is_clean and checked.code != 12 and checked.is_clean
            if not well or broken or again.code or place.wrong(stage):
                bad.append([stage, ended.code, checked.code, broken, again.code, place.wrong(stage), ended.said[-200:]])
    place.run = elsewhere
    return {"count": count, "codes": codes, "bad": len(bad), "first_bad": bad[:5]}


@contextmanager
def _mounted(folder: Path) -> Iterator[Path | None]:
    """None where it is not allowed."""
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _grown(place: Place, stage: str) -> int:
    """Bytes that the stage adds when nothing disturbs it, as they lie on a disk; it is run once to see."""
    before = trials.bytes_below(place.run)
    ended = place.go(stage)
    assert ended.code == 0, ended.said
    grown = trials.bytes_below(place.run) - before
    place.reset(f"before-{stage}")
    return max(grown, 0)


def _fill(disk: Path, free: int) -> Path:
    """A file that leaves so many bytes free."""
    ballast, there = disk / "ballast", os.statvfs(disk)
    with ballast.open("wb") as stream:
        block = b"\0" * MIB
        left = max(there.f_bavail * there.f_frsize - free, 0)
        while left > 0:
            left -= stream.write(block[:left])
    return ballast
