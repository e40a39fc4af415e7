"""Whether features of many images cost the same each, and how much memory they take: `dcdm score`, watched.

    python benchmarks/soak_features.py --images 100000

One thread. Pictures of random blocks are written once, in class folders; then `dcdm score FOLDER --method features` at
32 pixels is watched by what it says of its progress. Reports images/s of every tenth and the peak of memory.
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


def scored(folder: Path, run: Path) -> tuple[list[tuple[int, float]], float, float]:
    """(images looked at and the moment of it, seconds in all, peak MiB) of the command."""
    words = ["score", folder, "--run", run, "--method", "features", "--set", f"score.feature_size={SIDE}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DCDM_THREADS": "1", "DCDM_SCORE__AT_CHANCE": "warn"}
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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        write_pictures(given.images, folder)
        points, seconds, peak = scored(folder, Path(place) / "run")
    tenths = rates(points)
    sentence = (
        f"{given.images:,} images of {SIDE} px: {min(tenths):g} to {max(tenths):g} images/s through the network in "
        f"every tenth, {peak:,.0f} MiB at the peak, {seconds:,.0f} s in all, reading and fitting included."
    )
    rows = [[number, rate] for number, rate in enumerate(tenths, 1)]
    table = {"title": "Images/s by tenth", "columns": ["tenth", "images/s"], "rows": rows}
    found = {"images": given.images, "images_per_second_by_tenth": tenths, "seconds": round(seconds), "mib_peak": peak}
    body = {"threads": 1, **found, "sentences": [sentence], "tables": [table]}
    write_result("soak_features", body, found)


if __name__ == "__main__":
    main()
