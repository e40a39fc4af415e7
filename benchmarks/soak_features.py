"""Whether looking at many images costs the same each, and how much memory it takes: `dcdm score`, watched.

    python benchmarks/soak_features.py --images 100000
    python benchmarks/soak_features.py --photos FOLDER
    python benchmarks/soak_features.py --rows 1000000

One thread. Pictures of random blocks are written once, in class folders; then `dcdm score FOLDER` at 32 pixels is
watched by what it says of its progress. Reports images/s of every tenth and the peak of memory. --photos: how long the
command takes to scores of a folder of one's own, as anybody would type it, with every thread. --rows: no pictures, but
as many drawn rows of features in a cache, cross-fitted as those of pictures are: the peak of memory with a quarter of
them, and with all.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import write_result
from PIL import Image

from dcdm_cli.data.manifest import SCHEMA, Manifest
from dcdm_cli.difficulty.feature_cache import CHUNK, FeatureCache, _number, _write, image_identities
from dcdm_cli.difficulty.feature_folds import crossfit_features
from dcdm_cli.difficulty.features import Extractor, open_extractor
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig
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
    parser.add_argument("--rows", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.rows is not None:
            many_rows(given.rows, Path(place))
        elif given.photos is None:
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


def many_rows(count: int, place: Path) -> None:
    rows = []
    for images in (count // 4, count):
        clock = time.monotonic()
        extractor, manifest, job = open_extractor("packaged", SIDE, "cpu"), drawn_manifest(images), Job()
        fill(place / "cache", extractor, manifest)
        filled = time.monotonic()
        table = FeatureCache(place / "cache").of(extractor, manifest, job)
        found = time.monotonic()
        right = crossfit_features(manifest, table, extractor, ScoreConfig(), job).accuracy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        parts = [round(b - a) for a, b in pairwise((clock, filled, found, time.monotonic()))]
        rows.append([images, *parts, round(peak), round(right, 3)])
    size = sum(file.stat().st_size for file in (place / "cache").rglob("*.safetensors")) / 2**20
    sentence = (
        f"{count:,} rows of features, {size:,.0f} MiB in the cache, cross-fitted in {rows[1][3]:,} s: {rows[1][4]:,} "
        f"MiB at the peak, where a quarter of them takes {rows[0][4]:,} MiB."
    )
    columns = ["images", "s to fill", "s to look up", "s to cross-fit", "MiB at the peak", "right"]
    table_of = {"title": "Rows of features", "columns": columns, "rows": rows}
    facts = {"images": count, "mib_cache": round(size), "mib_peak": rows[1][4], "mib_peak_of_a_quarter": rows[0][4]}
    write_result("soak_rows", {"threads": 1, **facts, "sentences": [sentence], "tables": [table_of]}, facts)


def drawn_manifest(count: int) -> Manifest:
    names = [f"class {label}" for label in range(CLASSES)]
    labels = np.arange(count, dtype=np.int32) % CLASSES
    columns = {
        "sample_id": [f"{number:032x}-{number % 2**32:08x}" for number in range(count)],
        "path": [f"{number}.png" for number in range(count)],
        "label": labels,
        "class_name": np.array(names)[labels],
        "split": pa.repeat("train", count),
        "synthetic": np.zeros(count, bool),
    }
    empty = {field.name: pa.nulls(count, field.type) for field in SCHEMA}
    given = {name: pa.array(values, type=SCHEMA.field(name).type) for name, values in columns.items()}
    return Manifest(pa.table({**empty, **given}, schema=SCHEMA), tuple(names))


def fill(folder: Path, extractor: Extractor, manifest: Manifest) -> None:
    """Every image has its features, as if a network had looked at it: around a middle of its class."""
    rng, labels = np.random.default_rng(0), manifest.column("label")
    middles = rng.normal(0, 0.15, (CLASSES, extractor.width)).astype(np.float32)
    cache = FeatureCache(folder)
    hashes = np.array([_number(identity) for identity in image_identities(manifest)], np.uint64)
    home = folder / extractor.key[:16]
    cache._describe(home, extractor, Job())
    for start in range(0, len(labels), CHUNK):
        here = slice(start, start + CHUNK)
        drawn = rng.standard_normal((len(labels[here]), extractor.width + 1), np.float32)
        drawn[:, :-1] += middles[labels[here]]
        _write(home, hashes[here], drawn, [])


def kept_method(run: Path) -> str:
    return str(RunFolder(run).require("score").results["method"])


if __name__ == "__main__":
    main()
