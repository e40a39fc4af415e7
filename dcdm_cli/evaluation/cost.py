"""The whole bill: seconds x devices of every stage from its record, energy where it was counted, money at a price.

In: stage records and what came out. Out: plain JSON; null means unknown, never nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dcdm_cli.run.one_off import BUILD, LOAD, WARMUP
from dcdm_cli.run.store import StageRecord

MAKING = (
    "score",
    "caption",
    "finetune",
    "distill",
    "calibrate",
    "export",
    "generate",
)  # what an image costs; evaluation is apart
ONE_OFF = (LOAD, WARMUP, BUILD)  # parts of a stage that do not grow with the images
GPU, CPU = "GPU-hours", "CPU-hours"


def bill(
    records: Mapping[str, StageRecord], images: int, gain: Mapping[str, Any] | None, price: float | None
) -> dict[str, Any]:
    """records: stage -> record, as far as there are any. images: generated ones. gain: the paired comparison of the
    images with real ones only, for the cost of a point of accuracy. price: of a GPU-hour; CPU-hours have none.
    """
    stages = [_stage(name, record) for name, record in records.items()]
    making = [stage for stage in stages if stage["stage"] in MAKING]
    hours = {unit: round(sum(s["hours"] for s in making if s["unit"] == unit), 6) for unit in (GPU, CPU)}
    # CPU-hours have no price, and a sum without them would look like the whole
    money = None if price is None or hours[CPU] or not making else round(price * hours[GPU], 4)
    # a gain that may be chance has no price
    points = 100 * gain["difference_mean"] if gain and gain["verdict"] == "better" else None
    return {
        "stages": stages,
        "hours": hours,
        "energy_wh": _total([stage["energy_wh"] for stage in making]),
        "gpu_hour_price": price,
        "money": money,
        "images": images,
        "per_image": _share(hours, money, images),
        "points_gained": None if points is None else round(points, 4),
        "per_point": _share(hours, money, points),
    }


def hours_of(seconds: float, device: str, devices: int = 1) -> tuple[float, str]:
    """Device hours and what they are hours of. Workers on a CPU share one machine, so that its hours count once."""
    if device == "cpu":
        return round(seconds / 3600, 6), CPU
    return round(seconds * devices / 3600, 6), GPU


def _stage(name: str, record: StageRecord) -> dict[str, Any]:
    names = record.device.split(",")
    # a group of training processes writes one record, of the main process's device
    devices = max(len(names), int(record.results.get("processes", 1)))
    device = names[0] if devices == 1 else names[0].split(":")[0]
    hours, unit = hours_of(record.seconds, device, devices)
    return {
        "stage": name,
        "seconds": record.seconds,
        "device": device,
        "devices": devices,
        "hours": hours,
        "unit": unit,
        "peak_memory_mib": record.peak_memory_mib,
        "energy_wh": record.energy_wh,
        **{part: record.one_off.get(part) for part in ONE_OFF},
    }


def _total(values: Sequence[float | None]) -> float | None:
    """Unknown as soon as one part is."""
    known = [value for value in values if value is not None]
    return round(sum(known), 3) if known and len(known) == len(values) else None


def _share(hours: Mapping[str, float], money: float | None, parts: float | None) -> dict[str, Any] | None:
    if not parts:
        return None
    shares = {unit: round(value / parts, 8) for unit, value in hours.items()}
    return {**shares, "money": None if money is None else round(money / parts, 6)}
