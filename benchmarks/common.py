"""Shared by all benchmarks: what machine this is, how fast it multiplies, how times are taken and results written."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from dcdm_cli.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or ROOT / "benchmarks" / "results")
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
    """CPU name, its generation (clouds hide the model name), its vector units, cores and memory, and the GPU; without
    host names."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in text.splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    cpu = facts.get("model name") or platform.processor() or platform.machine()
    units = [unit for unit in ("avx2", "avx512f", "amx_tile") if unit in facts.get("flags", "").split()]
    if "cpu family" in facts and "model" in facts:
        cpu += f" family {facts['cpu family']} model {facts['model']}"
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


def gpu_or_sketch(name: str, *, sketch: bool) -> str | None:
    """The name of the result, a sketch's its own; None where a GPU is needed and there is none, which is printed."""
    import torch

    if sketch:
        return f"{name}_sketch"
    if torch.cuda.is_available():
        return name
    print(json.dumps({"name": name, "measured": False, "reason": "no CUDA GPU: not measured"}))
    return None


def provenance(command: str) -> dict[str, Any]:
    """Command, day, machine and versions, as `documents.py` prints them below a result."""
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


def release() -> None:
    """Gives back what no object holds any more, a GPU's memory too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """One run on the clock, from an idle device to an idle device."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


Value = TypeVar("Value")


def interleaved(works: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each work in turn, `rounds` times after one run to warm up: what drifts hits all of them alike."""
    return in_turn({name: partial(seconds, work, device) for name, work in works.items()}, rounds)


def in_turn(measures: Mapping[str, Callable[[], Value]], rounds: int) -> dict[str, list[Value]]:
    """What each of them gives, in turn, `rounds` times after one to warm up."""
    for measure in measures.values():
        measure()
    found: dict[str, list[Value]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


@dataclass(frozen=True)
class Product:
    """A square matrix product: what runs it, and its floating-point operations."""

    work: Callable[[], Any]
    flops: int


def matmul_ceiling(dtype: str = "float32", device: str = "cpu", rounds: int = 30) -> float:
    """FLOP/s of the square matrix product that the machine is best at."""
    products = square_products(dtype, device)
    return best_product(products, interleaved({name: p.work for name, p in products.items()}, rounds, device))


def best_product(products: Mapping[str, Product], times: Mapping[str, Sequence[float]]) -> float:
    """FLOP/s by medians, as for the networks that are compared with it: what the machine keeps up, not reaches once."""
    return max(product.flops / statistics.median(times[name]) for name, product in products.items())


def square_products(dtype: str = "float32", device: str = "cpu") -> dict[str, Product]:
    """Of several sizes. On a CPU every installed runtime multiplies: one may know the CPU better than torch's does."""
    return {
        f"{name}, {size}": Product(work, 2 * size**3)
        for size in ((512, 1024, 2048) if device == "cpu" else (4096, 8192))
        for name, work in _products(size, dtype, device).items()
    }


def _products(size: int, dtype: str, device: str) -> dict[str, Callable[[], Any]]:
    import torch

    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(left)
    products: dict[str, Callable[[], Any]] = {"torch": lambda: torch.mm(left, right, out=out)}
    if device != "cpu":
        return products
    graph, feed = _product_graph(size), {"left": left.numpy(), "right": right.numpy()}
    for name, start in (("onnxruntime", _in_onnxruntime), ("openvino", _in_openvino)):
        if importlib.util.find_spec(name):
            products[name] = start(graph, feed, torch.get_num_threads())
    return products


def _product_graph(size: int) -> bytes:
    from onnx import TensorProto, helper

    def tensor(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size])

    node = helper.make_node("MatMul", ["left", "right"], ["out"])
    graph = helper.make_graph([node], "product", [tensor("left"), tensor("right")], [tensor("out")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def _in_onnxruntime(graph: bytes, feed: Mapping[str, Any], threads: int) -> Callable[[], Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow what runs next
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feed))


def _in_openvino(graph: bytes, feed: Mapping[str, Any], threads: int) -> Callable[[], Any]:
    from dcdm_cli.backends.ov_backend import shared_core

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    core = shared_core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
    for name, value in feed.items():
        request.get_tensor(name).data[:] = value
    return request.infer


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Of times taken in turn: the median of slow / fast per round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def mean_of_medians(groups: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float, float]:
    """(Mean of the groups' medians, and its 95 % bootstrap interval: groups are drawn, then values in each of them)."""
    import numpy as np

    rng, samples = np.random.default_rng(0), [np.asarray(group) for group in groups]

    def again(sample: np.ndarray) -> float:
        return float(np.median(rng.choice(sample, len(sample))))

    drawn = rng.integers(len(samples), size=(draws, len(samples)))
    means = [np.mean([again(samples[group]) for group in row]) for row in drawn]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([np.median(sample) for sample in samples])), float(low), float(high)
