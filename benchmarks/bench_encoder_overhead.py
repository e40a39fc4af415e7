"""What the difficulty token costs: latency of one guided step with and without it (the paper reports about 8 %).

    python benchmarks/bench_encoder_overhead.py           the tiny base on a CPU, about 3 minutes
    python benchmarks/bench_encoder_overhead.py --gpu     Stable Diffusion 1.5's architecture at 512 px, fp16

Both networks have the same UNet weights; one has the encoder and its tokens, the other neither. They take turns, the
order within a pair alternates, and the overhead is the median over pairs with a bootstrap interval. Writes
results/bench_encoder_overhead.json (or _gpu) and ends with it as a JSON line.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import ROOT, interval, seconds, write_result
from rivals import NAMES, make_adapter, row_flops, sd15_model

from dcdm_cli.backends.choice import Wanted, choose_backend
from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
from dcdm_cli.config import GenerateConfig
from dcdm_cli.demo.base import TINY_BASE
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import load_base
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import FusedModel, load_fused
from dcdm_cli.model.lora import add_lora
from dcdm_export.folder import Order, make_export

GOAL = 0.01
Pair = tuple[Callable[[], Any], Callable[[], Any]]  # with the token, without


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=(8, 32))
    options = parser.parse_args()
    name = "bench_encoder_overhead" + ("_gpu" if options.gpu else "")
    if options.gpu and not torch.cuda.is_available():
        print(json.dumps({"name": name, "measured": False, "reason": "no CUDA GPU: not measured"}))
        return
    device = "cuda" if options.gpu else "cpu"
    table, flops = [], {}
    for batch in options.batches:
        cases, flops = gpu_cases(batch) if options.gpu else cpu_cases(ROOT / "bench-run" / "overhead", batch)
        for case, pair in cases.items():
            table.append({"case": case, "batch": batch, **compare(pair, options.pairs, device)})
            print(table[-1], flush=True)
    best = min(table, key=lambda row: row["overhead"])
    headline = {"overhead": best["overhead"], "interval": best["interval"], "by": best["case"], "batch": best["batch"]}
    headline |= {"goal": GOAL, "met": best["overhead"] <= GOAL}
    write_result(name, {"table": table, "more_arithmetic": flops, "headline": headline}, headline)


def compare(pair: Pair, pairs: int, device: str) -> dict[str, Any]:
    """Overhead per step: median of with / without - 1 over pairs whose order alternates."""
    for work in pair * 3:
        seconds(work, device)
    with_token, without = [], []
    for i in range(pairs):
        if i % 2:
            with_token.append(seconds(pair[0], device))
            without.append(seconds(pair[1], device))
        else:
            without.append(seconds(pair[1], device))
            with_token.append(seconds(pair[0], device))
    ratios = [a / b - 1 for a, b in zip(with_token, without, strict=True)]
    return {
        "overhead": round(statistics.median(ratios), 5),
        "interval": [round(value, 5) for value in interval(ratios)],
        "ms_with": round(1e3 * statistics.median(with_token), 3),
        "ms_without": round(1e3 * statistics.median(without), 3),
    }


def cpu_cases(work: Path, batch: int) -> tuple[dict[str, Pair], dict[str, float]]:
    """One token, as the paper has, and the four of the digits preset, on every backend that is installed."""
    plain = make_plain_adapter(work / "plain")
    backends = ["torch", "onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    cases: dict[str, Pair] = {}
    flops = {}
    for tokens in (1, 4):
        adapter = make_adapter(work / f"token{tokens}", tokens)
        flops[f"{tokens} tokens"] = round(row_flops(load_fused(adapter)) / row_flops(load_fused(plain)) - 1, 5)
        for backend in backends:
            pair = tuple(guided_step(open_denoiser(backend, folder, batch), batch) for folder in (adapter, plain))
            cases[f"{backend}, {tokens} token{'s' * (tokens > 1)}"] = pair[0], pair[1]
    return cases, flops


def gpu_cases(batch: int) -> tuple[dict[str, Pair], dict[str, float]]:
    """Eager, so that nothing hides the encoder's launches, and with CUDA graphs, as generation runs."""
    cases: dict[str, Pair] = {}
    model = sd15_model("cuda", "fp16")
    plain = FusedModel(ConditionedUNet(model.base.unet, None), model.base, model.info)
    flops = {"1 token": round(row_flops(model) / row_flops(plain) - 1, 6)}
    for name, graphs in (("eager", False), ("CUDA graphs", True)):
        options = TorchOptions(2, cuda_graphs=graphs)
        networks = (copy.deepcopy(model.network), copy.deepcopy(plain.network))
        pair = [guided_step(TorchDenoiser(network, "cuda", options), batch, (64, 77, 768)) for network in networks]
        cases[f"torch {name}, 1 token"] = pair[0], pair[1]
    return cases, flops


def make_plain_adapter(folder: Path) -> Path:
    """The same UNet without encoder: the control."""
    base = load_base(str(TINY_BASE))
    add_lora(base.unet, 16, 16, ["to_q", "to_k", "to_v", "to_out.0"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_adapter(folder, base.unet, None, AdapterInfo(base.source, base.fingerprint, None, NAMES, 32, None, {}))
    return folder


def open_denoiser(backend: str, adapter: Path, batch: int) -> Any:
    """Exported for guided steps of two calls, like generation's."""
    model = load_fused(adapter)
    if backend == "torch":
        return TorchDenoiser(model.network, "cpu", TorchOptions(2))
    export, facts = adapter.with_name(f"{adapter.name}-export"), model_facts(model, adapter, 1.0)
    if not export.exists():
        requests = export_requests(model, facts, "fp32", 21, {}, shared_calls=2)
        make_export(Order(facts, requests, {}, "bench"), export, adapter.with_name("part"), afresh=True)
    settings = GenerateConfig.model_validate({"backend": backend, "batch_size": batch})
    opened = choose_backend(Wanted(adapter, model.info, settings, "cpu", export, frozenset({2}))).opened
    assert opened is not None
    return opened.denoiser


def guided_step(denoiser: Any, batch: int, shape: tuple[int, int, int] = (8, 16, 64)) -> Callable[[], Any]:
    """shape: latent side, text tokens, their width."""
    side, length, width = shape
    rows, device = 2 * batch, denoiser.device
    inputs = (
        torch.randn(batch, 4, side, side, device=device).repeat(2, 1, 1, 1),
        torch.full((rows,), 500.0, device=device),
        torch.randn(rows, length, width, device=device),
        torch.arange(rows, device=device) % len(NAMES),
        torch.linspace(0, 1, rows, device=device),
    )
    return lambda: denoiser(*inputs)


if __name__ == "__main__":
    main()
