"""What a killed stage leaves, changed, damaged or gone before the same command goes on: for `reliability.py`."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trials
from harm import cut_in_half, last_bit
from place import OPTIONAL, STAGES, Place

HARMS = {"a bit": last_bit, "half": cut_in_half, "gone": Path.unlink}
# Sets of an evaluation whose classifiers are trained; lists whose rows have hashes, of which a bad one is passed over
# and made again at the end.
LATER = re.compile(r"^evaluation/sets/|\.jsonl$")
MOMENTS = (0.35, 0.5, 0.65, 0.8, 0.9)  # of a stage's time, at which it is killed


def resumed(place: Place, _: int) -> dict[str, Any]:
    """Every file that a killed stage has left, damaged before the same command goes on: it ends with the files of a run
    that nothing disturbed, or stops with an error that is meant; it never goes on with what is damaged. What is kept
    for later alone may stay as it is: who uses it looks at it first (the part `experiments`)."""
    place.prepare_optional()
    bad: list[Any] = []
    by_stage: dict[str, int] = {}
    codes: dict[str, int] = {}
    for stage in (*STAGES, *OPTIONAL):
        for name in _begun(place, stage):
            for how, harm in HARMS.items():
                place.reset(f"killed-{stage}")
                harm(place.run / name)
                ended = place.go(stage)
                by_stage[stage] = by_stage.get(stage, 0) + 1
                codes[str(ended.code)] = codes.get(str(ended.code), 0) + 1
                wrong = place.wrong(stage) if ended.code == 0 else []
                wrong = [other for other in wrong if not (other == name and LATER.search(name))]
                wrong = [other for other in wrong if not other.endswith("README.md")]  # a card is for people
                if not ended.is_clean or wrong:
                    bad.append([stage, name, how, ended.code, wrong, ended.said[-200:]])
    count = sum(by_stage.values())
    return {"count": count, "by_stage": by_stage, "codes": codes, "bad": len(bad), "first_bad": bad[:40]}


def _begun(place: Place, stage: str) -> list[str]:
    """The files that are new or other than before the stage began, where it was killed at the moment that leaves most;
    that state is kept as `killed-<stage>`. Locks hold no work."""
    most: list[str] = []
    for share in MOMENTS:
        place.reset(f"before-{stage}")
        ended = place.go(stage, kill_after=share * place.seconds[stage])
        found = [] if ended.code != -signal.SIGKILL else sorted(_new(place.root / f"before-{stage}", place.run))
        if len(found) > len(most):
            most = found
            shutil.rmtree(place.root / f"killed-{stage}", ignore_errors=True)
            shutil.copytree(place.run, place.root / f"killed-{stage}")
    return most


def _new(before: Path, after: Path) -> Iterator[str]:
    for file in after.rglob("*"):
        name = file.relative_to(after).as_posix()
        if not file.is_file() or not file.stat().st_size or file.name.startswith(".lock"):
            continue
        if trials.digest_or_none(file) != trials.digest_or_none(before / name):
            yield name
