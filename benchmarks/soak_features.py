"""Whether looking at many images costs the same each, and how much memory it takes: `dcdm score`, watched.

    python benchmarks/soak_features.py --images 100000
    python benchmarks/soak_features.py --photos FOLDER

One thread. Pictures of random blocks are written once, in class folders; then `dcdm score FOLDER` at 32 pixels is
watched by what it says of its progress. Reports images/s of every tenth and the peak of memory. --photos: how long the
command takes to scores of a folder of one's own, as anybody would type it, with every thread.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import write_result
from PIL import Image

from dcdm_cli.run.store import RunFolder

SIDE, CLASSES, TENTHS = 32, 10, 10
LOOKED = re.compile(r"looking at images: ([\d,]+)/")


def write_pictures(count: int, folder: Path) -> None:
    """Of each class another tint, so that there is something to learn."""
    rng = np.random.default_rng(0)
    for number in range(count):
        label = number % CLASSES
        blocks = rng.integers(0, 200, (4, 4, 3), dtype=np.uint8)
        blocks[..., label % 3] += np.uint8(5 * (label + 1))
        place = folder / f"class {label}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(place, compress_level=1)


ONE_THREAD = {"OMP_NUM_THREADS": "1", "DCDM_THREADS": "1", "DCDM_SCORE__AT_CHANCE": "warn"}


def scored(
    folder: Path, run: Path, *flags: str, environment: dict[str, str] | None = None
) -> tuple[list[tuple[int, float]], float, float]:
    """(images looked at and the moment of it, seconds in all, peak MiB) of the command."""
    words, environment = ["score", folder, "--run", run, *flags], os.environ | (environment or {})
    clock, points = time.monotonic(), []
    begun = subprocess.Popen(
        [sys.executable, "-m", "dcdm_cli", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert begun.stderr is not None
    for line in begun.stderr:
        if found := LOOKED.search(line):
            points.append((int(found[1].replace(",", "")), time.monotonic() - clock))
    _, status, used = os.wait4(begun.pid, 0)
    begun.returncode = os.waitstatus_to_exitcode(status)
    if begun.returncode:
        sys.exit(f"dcdm score ended with {begun.returncode}")
    return points, time.monotonic() - clock, round(used.ru_maxrss / 1024, 1)


def rates(points: list[tuple[int, float]]) -> list[float]:
    """Images per second in each tenth."""
    done, clock = (np.array(column, float) for column in zip(*points, strict=True))
    edges = np.linspace(done[0], done[-1], TENTHS + 1)
    times = np.interp(edges, done, clock)
    return [round(float(n / max(s, 1e-9)), 1) for n, s in zip(np.diff(edges), np.diff(times), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--photos", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.photos is None:
            many_pictures(given.images, Path(place))
        else:
            photographs(given.photos, Path(place) / "run")


def many_pictures(count: int, place: Path) -> None:
    write_pictures(count, place / "pictures")
    flags = ("--set", f"score.feature_size={SIDE}")
    points, seconds, peak = scored(place / "pictures", place / "run", *flags, environment=ONE_THREAD)
    tenths, method = rates(points), kept_method(place / "run")
    sentence = (
        f"{count:,} images of {SIDE} px, the default method (it kept {method}): {min(tenths):g} to {max(tenths):g} "
        f"images/s through the network in every tenth, {peak:,.0f} MiB at the peak, {seconds:,.0f} s in all, reading "
        "and fitting included."
    )
    rows = [[number, rate] for number, rate in enumerate(tenths, 1)]
    table = {"title": "Images/s by tenth", "columns": ["tenth", "images/s"], "rows": rows}
    found = {"images": count, "images_per_second_by_tenth": tenths, "seconds": round(seconds), "mib_peak": peak}
    write_result("soak_features", {"threads": 1, **found, "sentences": [sentence], "tables": [table]}, found)


def photographs(folder: Path, run: Path) -> None:
    _, seconds, peak = scored(folder, run)
    record = RunFolder(run).require("score").results
    images, method = record["images"], kept_method(run)
    found = {"images": images, "seconds": round(seconds, 1), "mib_peak": peak, "right": round(record["accuracy"], 3)}
    sentence = (
        f"`dcdm score FOLDER` on {images:,} photographs, nothing cached: {seconds:.0f} s to scores, {peak:,.0f} MiB at "
        f"the peak; it kept {method}, which names {record['accuracy']:.1%} right out of fold."
    )
    write_result("score_photos", {**found, "sentences": [sentence], "tables": []}, found)


def kept_method(run: Path) -> str:
    return str(RunFolder(run).require("score").results["method"])


if __name__ == "__main__":
    main()
