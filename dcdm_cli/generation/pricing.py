"""What a plan will cost, from a short probe on the real backend: some of its images, in a throw-away folder."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdm_cli.errors import UsageError
from dcdm_cli.files import PART_SUFFIX, check_room, write_bytes
from dcdm_cli.gate import Amount
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.plan_file import AnyPlan
from dcdm_cli.generation.shards import Encoders, Maker, ShardTask, make_batches
from dcdm_cli.run.progress import Job

PROBE_S = 20.0  # measured time, after the first batch; the plan may be over sooner
PROBE_BATCHES = (3, 50)  # at least, at most
ROW_BYTES = {"folder": 1000, "parquet": 600, "webdataset": 4000}  # an image's share of everything but its pixels


LEAST_SHARE = {"png": 0.1, "jpg": 0.02, "webp": 0.02}  # of three bytes a pixel, which real files hardly fall below


@dataclass(frozen=True)
class Rate:
    """opening_s: loading the model. warmup_s: what the first batch took beyond its share. per_image_s: of one device,
    rendering with all draws, scoring, encoding and writing. bytes: of one image's file. images: made to know this."""

    opening_s: float
    warmup_s: float
    per_image_s: float
    bytes: float
    images: int


@dataclass(frozen=True)
class Repayment:
    """Of guidance that was distilled. seconds: what that took, once; by_calls_s: of an image by the guided calls.
    images: after how many it has paid; None = never, one call is no faster here."""

    seconds: float
    by_calls_s: float
    images: int | None


@dataclass(frozen=True)
class Price:
    """seconds: wall clock. device_hours: over all devices, from start to end. money: None without a price. repayment:
    None where guidance is not distilled."""

    images: int
    shards: int
    devices: int
    device: str
    seconds: float
    device_hours: float
    disk_bytes: int
    disk_free_bytes: int
    images_per_second: float
    money: float | None
    probe: Rate
    repayment: Repayment | None = None

    def document(self) -> dict[str, Any]:
        """For JSON. gpu_hours: None where the device is no GPU."""
        gpu = self.device.startswith("cuda") or self.device == "mps"
        numbers = {key: value for key, value in vars(self).items() if key not in ("probe", "repayment")}
        distilled = {"repayment": vars(self.repayment)} if self.repayment else {}
        return {**numbers, "gpu_hours": self.device_hours if gpu else None, "probe": vars(self.probe), **distilled}


@dataclass(frozen=True)
class Priced:
    """What of a price file is used again."""

    seconds: Amount


def probe_rate(plan: Plan, maker: Maker, layout: Layout, opening_s: float, job: Job) -> Rate:
    """Makes images from all over the plan as a run would, in a temporary folder beside `layout.folder`.

    Raises InterruptedRunError when asked to stop.
    """
    # on the disk that the run will write to
    place = layout.folder.parent
    place.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    # in random order: whenever the time is over, what was made is from all over the plan
    rows = tuple(plan.sampled_rows(maker.batch_size * PROBE_BATCHES[1]))
    with tempfile.TemporaryDirectory(dir=place, prefix=".probe-", suffix=PART_SUFFIX) as folder, Encoders() as encoders:
        task = ShardTask(0, rows, layout, plan.generator)

        def store(entry: dict[str, Any], content: bytes) -> None:
            # not flushed, as a run's images are not
            write_bytes(Path(folder, entry["sample_id"]), content, durable=False)

        for batch in make_batches(task, maker, encoders, job, store, clock.enough):
            clock.tick(len(batch.entries), sum(entry["bytes"] for entry in batch.entries))
    # `make_batches` ends quietly when it is stopped
    job.stop_if_asked("nothing was measured or written")
    return clock.rate(opening_s)


class _Clock:
    """Times batches as they are finished; the first one is the warm-up."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.ticks: list[tuple[float, int]] = []
        self.bytes, self.rendered = 0, 0

    def tick(self, images: int, size: int) -> None:
        self.ticks.append((time.monotonic() - self.started, images))
        self.bytes += size

    def enough(self) -> bool:
        """Asked after every rendered batch, which may be some batches ahead of the finished ones."""
        self.rendered += 1
        measured = time.monotonic() - self.started - self.ticks[0][0] if self.ticks else 0.0
        return self.rendered > PROBE_BATCHES[0] and measured > PROBE_S

    def rate(self, opening_s: float) -> Rate:
        images = sum(made for _, made in self.ticks)
        first_s, first = self.ticks[0]
        total = self.ticks[-1][0]
        # of a single batch, warm-up and work cannot be told apart: it is taken for work
        later = (total - first_s) / (images - first) if images > first else first_s / first
        warmup = max(0.0, first_s - later * first)  # a first batch with few redraws may have been a cheap one
        return Rate(opening_s, warmup, (total - warmup) / images, self.bytes / images, images)


def affordable(rate: Rate, hours: float, devices: int) -> int:
    """Images that `hours` device-hours pay for, opening included. Raises UsageError when that is none."""
    # each device opens the model and warms up by itself, in hours that are paid for
    images = int((hours * 3600 - devices * (rate.opening_s + rate.warmup_s)) / rate.per_image_s)
    if images < 1:
        raise UsageError(
            f"{hours:g} hours are over before the first image: opening takes {rate.opening_s:.0f} s on each device",
            "raise --budget-hours",
        )
    return images


def price(plan: Plan, rate: Rate, layout: Layout, device: str, devices: int, hour_price: float | None) -> Price:
    """device: name of the first; devices: how many share the shards. hour_price: money for one device-hour."""
    # a shard is one device's: more of them stand idle, and are paid for below all the same
    devices_used = max(1, min(devices, plan.shards))
    seconds = rate.opening_s + rate.warmup_s + len(plan) * rate.per_image_s / devices_used
    hours = seconds * devices / 3600
    return Price(
        images=len(plan),
        shards=plan.shards,
        devices=devices,
        device=device,
        seconds=round(seconds, 1),
        device_hours=round(hours, 4),
        disk_bytes=int(len(plan) * (rate.bytes + ROW_BYTES[layout.format])),
        disk_free_bytes=shutil.disk_usage(layout.folder.parent).free,
        images_per_second=round(devices_used / rate.per_image_s, 3),
        money=None if hour_price is None else round(hours * hour_price, 2),
        probe=rate,
    )


def repayment(seconds: float, by_calls: Rate, distilled: Rate) -> Repayment:
    """seconds: what distilling and its calibration took. The rates: measured alike, on the same device."""
    saved = by_calls.per_image_s - distilled.per_image_s
    return Repayment(seconds, by_calls.per_image_s, math.ceil(seconds / saved) if saved > 0 else None)


def check_disk(plan: AnyPlan, layout: Layout, side: int) -> None:
    """Before a plan is executed, by what its missing images of side x side pixels take at the very least; `--plan`
    measures what they really take. Raises StorageError."""
    done = sum(1 for _ in (layout.folder / "shards").glob("[0-9]*.json")) / max(1, plan.shards)
    each = 3 * side**2 * LEAST_SHARE.get(layout.image, 0.02)
    check_room(layout.folder, int(len(plan) * (1 - min(done, 1.0)) * each), f"{len(plan)} images of {side} pixels")
