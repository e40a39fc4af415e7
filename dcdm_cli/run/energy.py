"""Energy of NVIDIA GPUs, from their own counters. Optional: `pip install 'dcdm-cli[energy]'`; unknown stays unknown."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

Reading = dict[int, int]  # GPU number -> millijoules since its driver was loaded


def read_energy() -> Reading | None:
    """The counters of the GPUs this process may use; None without the library, a driver, or a GPU that counts."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        numbers = _visible(nvml.nvmlDeviceGetCount())
        handles = {number: nvml.nvmlDeviceGetHandleByIndex(number) for number in numbers}
        return {number: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for number, handle in handles.items()}
    except nvml.NVMLError:  # older than Volta
        return None
    finally:
        nvml.nvmlShutdown()


def energy_since(before: Reading | None, read: Callable[[], Reading | None] = read_energy) -> float | None:
    """Watt-hours since `before`, of all GPUs in sight: those of other processes on them are included."""
    after = read() if before else None
    if not before or after is None or before.keys() - after.keys():
        return None
    # 3.6e6 millijoules are a watt-hour
    return round(sum(after[number] - start for number, start in before.items()) / 3.6e6, 3)


def _visible(count: int) -> list[int]:
    """GPU numbers out of CUDA_VISIBLE_DEVICES; all of them without it, or where it names GPUs otherwise."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is not None and setting.strip() in ("", "-1"):  # CUDA's ways to say none
        return []
    words = (setting or "").split(",")
    numbers = [int(word) for word in words if word.strip().isdecimal()]
    return [number for number in numbers if number < count] or list(range(count))


def _nvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml
