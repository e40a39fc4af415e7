"""Where a GPU's time goes in one guided step of Stable Diffusion 1.5: kernels by class, from PyTorch's profiler.

    python benchmarks/gpu_kernels.py              512 px, batch 32 x 2 calls, fp16
    python benchmarks/gpu_kernels.py --sketch     the same code on a toy architecture and a CPU (operators by class)

Writes results/gpu_kernels.json: milliseconds and share of each class, and the twenty longest kernels.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

from common import gpu_or_sketch, release, seconds, write_result
from rivals import CALLS, Ours, config, row_flops, sd15_model, torch_engine
from torch.profiler import ProfilerActivity, profile

from dcdm_cli.backends.torch_backend import TorchOptions

# The first that matches; names are those of cuDNN, CUTLASS, cuBLAS, FlashAttention, Triton and ATen.
CLASSES = {
    "attention": ("flash", "fmha", "attention", "sdpa", "mem_eff"),
    "convolution": ("conv", "implicit", "wgrad", "fprop", "winograd", "xmma"),
    "linear": ("gemm", "cutlass", "cublas", "addmm", "mm_", "aten::mm", "aten::bmm", "linear", "nvjet"),
    "layout and copies": ("nchw", "nhwc", "copy", "transpose", "memcpy", "contiguous", "cat"),
    "normalisation": ("norm", "moments", "welford"),
    "element-wise": (
        "elementwise",
        "vectorized",
        "silu",
        "gelu",
        "mul",
        "add",
        "softmax",
        "triton",
        "reduce",
        "aten::",
    ),
}
STEPS, LONGEST = 3, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", action="store_true")
    options = parser.parse_args()
    name = gpu_or_sketch("gpu_kernels", sketch=options.sketch)
    if name is None:
        return
    device, precision, batch = ("cpu", "fp32", 1) if options.sketch else ("cuda", "fp16", 32)
    found: dict[str, Any] = {"batch": batch}
    flops = CALLS * batch * row_flops(sd15_model(device, precision, small=options.sketch))
    release()
    settings = config(20, precision=precision, batch_size=batch)
    model = sd15_model(device, precision, small=options.sketch)
    # A recorded graph is one launch to the profiler: the kernels are those of the network without it.
    step = Ours(torch_engine(model, settings, device, TorchOptions(CALLS, cuda_graphs=False))).step(batch)
    step()
    found["seconds of a guided step"] = round(min(seconds(step, device) for _ in range(STEPS)), 5)
    found["TFLOP/s"] = round(flops / found["seconds of a guided step"] / 1e12, 2)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
    write_result(name, document({**found, **by_class(kernels(profiler, device))}, f"{precision}, {device}"), found)


def document(found: dict[str, Any], where: str) -> dict[str, Any]:
    """With what `documents.py` shows of it."""
    first = found["classes"][0]
    said = f"{found['TFLOP/s']} TFLOP/s inside the network; most of the time is {first['class']}: {first['share']:.0%}."
    sheets = [
        {"title": title, "columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}
        for title, rows in (("By class, a guided step", found["classes"]), ("The longest", found["longest"]))
    ]
    title = f"Where the time of a guided step goes: SD 1.5 architecture, two calls, batch {found['batch']}, {where}"
    return {"title": title, "sentences": [said], "tables": sheets, **found}


def kernels(profiler: Any, device: str) -> dict[str, float]:
    """Milliseconds per step by name, of kernels on a GPU, of operators on a CPU."""
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return {event.key: getattr(event, key) / 1000 / STEPS for event in profiler.key_averages() if getattr(event, key)}


def by_class(times: dict[str, float]) -> dict[str, Any]:
    sums: dict[str, float] = defaultdict(float)
    for name, milliseconds in times.items():
        sums[class_of(name)] += milliseconds
    whole = sum(sums.values())
    table = [
        {"class": name, "ms": round(value, 3), "share": round(value / whole, 3)}
        for name, value in sorted(sums.items(), key=lambda pair: -pair[1])
    ]
    longest = sorted(times.items(), key=lambda pair: -pair[1])[:LONGEST]
    return {"classes": table, "longest": [{"kernel": name[:160], "ms": round(value, 3)} for name, value in longest]}


def class_of(kernel: str) -> str:
    low = kernel.lower()
    return next((name for name, words in CLASSES.items() if any(word in low for word in words)), "other")


if __name__ == "__main__":
    main()
