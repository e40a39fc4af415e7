"""Whether features of many images cost the same each, and how much memory they take: synthetic pictures, tiny.

    python benchmarks/soak_features.py --images 100000

One thread. Pictures of random blocks are written once, in folders of 1,000; then features at 32 pixels, heads on them
and scores, as `dcdm score --method features` makes them. Reports images/s of every tenth and the peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import write_result
from PIL import Image

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.scoring import Scoring, score_images
from dcdm_cli.files import hash_bytes
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig

SIDE, CLASSES = 32, 10


def pictures(count: int, folder: Path) -> Manifest:
    """Of each class another tint, so that there is something to learn."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        label = number % CLASSES
        blocks = rng.integers(0, 200, (4, 4, 3), dtype=np.uint8)
        blocks[..., label % 3] += np.uint8(5 * (label + 1))
        place = folder / f"{number // 1000:04d}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(place, compress_level=1)
        about = {"sample_id": hash_bytes(blocks.tobytes()), "width": SIDE, "height": SIDE, "label": label}
        rows.append({**about, "path": place.relative_to(folder).as_posix()})
    return Manifest.from_rows(rows, [f"class {label}" for label in range(CLASSES)], folder)


class Watch:
    """Progress of looking at images, as CPU seconds by image."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "looking at images":
            self.points.append((done, time.process_time()))

    def rates(self, parts: int) -> list[float]:
        """Images per CPU second in each of `parts` equal parts."""
        done, clock = (np.array(column) for column in zip(*self.points, strict=True))
        edges = np.linspace(done[0], done[-1], parts + 1)
        times = np.interp(edges, done, clock)
        return [round(float(n / max(s, 1e-9)), 1) for n, s in zip(np.diff(edges), np.diff(times), strict=True)]


def peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        made, before, watch = pictures(given.images, Path(place)), peak_mib(), Watch()
        config, started = ScoreConfig(method="features", feature_size=SIDE), time.process_time()
        scored = score_images(made, config, Scoring(Path(place) / "spool"), Job(progress=watch))
        seconds = round(time.process_time() - started, 1)
    found = {
        "images": given.images,
        "images_per_cpu_second_by_tenth": watch.rates(10),
        "cpu_seconds": seconds,
        "mib_before": before,
        "mib_peak": peak_mib(),
        "accuracy": round(scored.results["accuracy"], 4),
    }
    write_result("soak_features", {"threads": 1, **found}, found)


if __name__ == "__main__":
    main()
