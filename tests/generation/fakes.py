"""A maker that costs nothing: an image is a function of its row's seed, so that runs can be compared byte by byte.

Imports no torch, so that worker processes start at once.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dcdm_cli.difficulty.verdict import Measure, Verdict
from dcdm_cli.generation.plan import Plan, PlanInputs, PlanRow, make_plan
from dcdm_cli.generation.shards import Facts, Rendered
from dcdm_cli.generation.starts import Starts
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.generation.workers import ShardWorker
from dcdm_cli.run.progress import Job

NAMES = ("zero", "test tube", "two")
CAPTIONS = [[f"the number {name}", f"a photo of a {name}"] for name in NAMES]
GENERATOR = "fake"


def inputs(**changes: object) -> PlanInputs:
    real = np.linspace(0, 1, 30).astype(np.float32)
    chosen = {"class_names": NAMES, "captions": CAPTIONS, "real": real, "cap": 0.8, "calibration": None} | changes
    return PlanInputs(**chosen)  # type: ignore[arg-type]


def fake_measure(images: np.ndarray, labels: np.ndarray) -> Verdict:
    """Brightness is difficulty, the label is right, and no other class comes near."""
    return Verdict(images.mean((1, 2, 3)) / 255, labels, np.zeros(len(images)))


class FakeMaker:
    """side: pixels; seconds: per image. Images whose seed is divisible by `blank` are blank."""

    def __init__(
        self, batch_size: int = 4, side: int = 8, seconds: float = 0.0, blank: int = 0, measure: Measure | None = None
    ) -> None:
        self.batch_size, self.side, self.seconds, self.blank = batch_size, side, seconds, blank
        self.measure = measure
        self.facts = Facts(GENERATOR, NAMES, "no model", "fake")
        self.rendered: list[int] = []
        self.starts: Starts | None = None

    def render(self, rows: Sequence[PlanRow], job: Job) -> Iterator[Rendered]:
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            time.sleep(self.seconds * len(batch))
            self.rendered += [row.index for row in batch]
            images = np.stack([self._image(row) for row in batch])
            labels = np.array([row.label for row in batch])
            yield Rendered(batch, images, self.measure(images, labels) if self.measure else None)

    def begin_from(self, starts: Starts) -> None:
        self.starts = starts

    def _image(self, row: PlanRow) -> np.ndarray:
        if self.blank and row.seed % self.blank == 0:
            return np.zeros((self.side, self.side, 3), np.uint8)
        begun = [] if self.starts is None else self.starts.of([row])[0].ravel().view(np.uint32).tolist()
        rng = np.random.default_rng([row.seed, *begun] if begun else row.seed)
        return rng.integers(0, 256, (self.side, self.side, 3), np.uint8)


def open_fake(
    device: str, should_stop: Callable[[], bool], *, deliver: bool = False, seconds: float = 0
) -> ShardWorker:
    """On the device "full" no file may become larger than 2 kB, which is what a full disk looks like."""
    if device == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    return ShardWorker(FakeMaker(seconds=seconds, measure=fake_measure), should_stop, deliver=deliver)


def fake_plan(images: int, shard_size: int, seed: int = 0, **changes: object) -> Plan:
    counts = np.full(len(NAMES), images // len(NAMES))
    counts[: images - counts.sum()] += 1
    drawn_from = inputs(**changes)
    return make_plan(drawn_from, counts, parse_target("uniform:0,0.8"), seed, GENERATOR, shard_size=shard_size)


# Real images to start from, and latents of them.
SOURCES = [[f"{label}{number}".rjust(32, "0") for number in range(4)] for label in range(len(NAMES))]
EVERY = [sample for ids in SOURCES for sample in ids]
STARTS = Starts(
    {sample: row for row, sample in enumerate(EVERY)},
    np.random.default_rng(1).normal(size=(len(EVERY), 4, 8, 8)).astype(np.float32),
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but samples.parquet, which names its folder."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    found.pop("samples.parquet", None)
    return found
