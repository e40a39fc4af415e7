"""Shared by all benchmarks: what machine this is, how fast it multiplies, how times are taken and results written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dcdm_cli.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "bench-work"  # adapters, exports and images that are made on the way
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "timm",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "tensorrt",
)
TRAINING = ("torch", "diffusers", "peft", "timm")  # what results of experiments name


def hardware() -> str:
    """CPU name, its vector units, cores and memory, and the GPU; without host names."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in text.splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    cpu = facts.get("model name") or platform.processor() or platform.machine()
    units = [unit for unit in ("avx2", "avx512f", "amx_tile") if unit in facts.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu} ({' '.join(units) or 'no AVX2'}), {os.cpu_count()} cores, {memory:.0f} GiB, {_gpu()}"


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return "no GPU used"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU used"


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def write_result(name: str, result: Mapping[str, Any], headline: Mapping[str, Any]) -> Path:
    """benchmarks/results/<name>.json with hardware, versions and date; prints the headline as the last line."""
    facts = {"name": name, **_origin(versions())}
    file = save({**facts, **result}, name)
    print(json.dumps({**facts, **headline}))
    return file


def provenance(command: str) -> dict[str, Any]:
    """Command, day, machine and versions, as `dcdm evaluate --suite` prints them below a result."""
    found = versions()
    return {"command": command, **_origin({package: found[package] for package in TRAINING})}


def _origin(packages: dict[str, str]) -> dict[str, Any]:
    return {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware(), "versions": packages}


def save(content: Mapping[str, Any], name: str, folder: Path = RESULTS) -> Path:
    """The file <folder>/<name>.json, whole or not at all."""
    file = folder / f"{name}.json"
    write_json(file, content)
    return file


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """One run on the clock, from an idle device to an idle device."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def interleaved(works: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each work in turn, `rounds` times after one run to warm up: what drifts hits all of them alike."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return times


def matmul_ceiling(dtype: str = "float32", device: str = "cpu", rounds: int = 30) -> float:
    """FLOP/s of the square matrix product that the machine is best at: median of `rounds`, best of several sizes.

    Medians, as for the networks that are compared with it: what the machine keeps up, not what it reaches once.
    """
    import torch

    sizes = (512, 1024, 2048) if device == "cpu" else (4096, 8192)
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(left)
        times = interleaved({"": lambda a=left, b=right, o=out: torch.mm(a, b, out=o)}, rounds, device)[""]
        best = max(best, 2 * size**3 / statistics.median(times))
    return best


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Of times taken in turn: the median of slow / fast per round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    import numpy as np

    rng = np.random.default_rng(0)
    sample = np.asarray(values)
    medians = np.median(rng.choice(sample, (draws, len(sample))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))
