"""What the difficulty token costs: latency of one guided step with and without it (the paper reports about 8 %).

    python benchmarks/bench_encoder_overhead.py           tiny base and SD 1.5's architecture, CPU, about 6 minutes
    python benchmarks/bench_encoder_overhead.py --gpu     Stable Diffusion 1.5's architecture at 512 px, fp16

Both networks have the same UNet weights; one has the encoder and its tokens, the other neither. They take turns in
pairs of alternating order, and the overhead is the median over blocks of two pairs with a bootstrap interval. Writes
results/bench_encoder_overhead.json (or _gpu) and ends with it as a JSON line.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import WORK, interval, seconds, write_result
from rivals import NAMES, call_alone, make_adapter, row_flops, sd15_model

from dcdm_cli.backends.choice import Wanted, choose_backend
from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
from dcdm_cli.config import GenerateConfig
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import FusedModel, load_fused
from dcdm_cli.model.lora import add_lora
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_export.folder import Order, make_export

GOAL = 0.01
Step = Callable[[], Any]
Steps = tuple[Callable[[int], Step], Callable[[int], Step]]  # batch -> guided step, with the token and without
LARGE = "SD 1.5's architecture"
REPLACING = "in place of a padding token"  # mode `replace`: no text longer than without it
NO_ENCODER = "no encoder, text longer by a token"  # what a token costs that comes from nowhere
ENCODER_ALONE = "1 token, against a text as long"  # and what the encoder adds to that
TINY_SHAPE = (8, 16, 64)
LARGE_SHAPE = (16, 77, 768)  # at 128 px: the fewer pixels, the more the token weighs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--large-pairs", type=int, default=40, help="of SD 1.5's architecture on the CPU, batch 1")
    parser.add_argument("--batches", type=int, nargs="+", default=(8, 32))
    options = parser.parse_args()
    name = "bench_encoder_overhead" + ("_gpu" if options.gpu else "")
    if options.gpu and not torch.cuda.is_available():
        print(json.dumps({"name": name, "measured": False, "reason": "no CUDA GPU: not measured"}))
        return
    device = "cuda" if options.gpu else "cpu"
    cases, flops = gpu_cases() if options.gpu else cpu_cases(WORK / "overhead", max(options.batches))
    table = measured(cases, options.batches, options.pairs, device)
    if not options.gpu:
        large, more = large_cases()
        table += measured(large, (1,), options.large_pairs, device)
        flops |= more
    headlines = summarise(table)
    document = {
        "title": "What the difficulty token costs",
        "sentences": [sentence(row) for row in headlines],
        "tables": [sheet(table)],
    }
    headline = {"headline": headlines}
    write_result(name, {**document, "cases": table, "more_arithmetic": flops, **headline}, headline)


def measured(cases: dict[str, Steps], batches: Sequence[int], pairs: int, device: str) -> list[dict[str, Any]]:
    table = []
    for case, (with_token, without) in cases.items():
        for batch in batches:
            table.append({"case": case, "batch": batch, **compare((with_token(batch), without(batch)), pairs, device)})
            print(table[-1], flush=True)
    return table


def summarise(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count: one token, as the paper has, on each network's fastest backend and best batch.

    And its two parts; a longer text without an encoder has no goal, as no encoder can change it.
    """
    kinds = [
        [row for row in table if row["case"].endswith("1 token") and LARGE in row["case"]],
        [row for row in table if row["case"].endswith("1 token") and LARGE not in row["case"]],
        [row for row in table if row["case"].endswith(REPLACING)],
        [row for row in table if row["case"].endswith(ENCODER_ALONE)],
    ]
    kept = ("overhead", "interval", "case", "batch")
    best = [{key: fastest(rows)[key] for key in kept} for rows in kinds if rows]
    judged = [{**row, "goal": GOAL, "met": row["overhead"] <= GOAL} for row in best]
    free = [row for row in table if row["case"].endswith(NO_ENCODER)]
    return judged + ([{key: fastest(free)[key] for key in kept}] if free else [])


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return min(rows, key=lambda row: row["ms_without"] / row["batch"])


def sentence(headline: dict[str, Any]) -> str:
    low, high = headline["interval"]
    verdict = "" if "goal" not in headline else f"; goal {GOAL:.0%} {'met' if headline['met'] else 'NOT met'}"
    return (
        f"{headline['case']} at batch {headline['batch']}, its fastest: {headline['overhead']:+.2%} per guided step "
        f"(95 % interval {low:+.2%} to {high:+.2%}){verdict}."
    )


def sheet(table: list[dict[str, Any]]) -> dict[str, Any]:
    columns = ["network", "batch", "ms without", "ms with", "overhead", "95 % interval"]
    rows = [
        [r["case"], r["batch"], r["ms_without"], r["ms_with"], f"{r['overhead']:+.2%}",
         "{:+.2%} to {:+.2%}".format(*r["interval"])]
        for r in table
    ]  # fmt: skip
    return {"title": "One guided step with and without the token, taken in turn", "columns": columns, "rows": rows}


def compare(pair: tuple[Step, Step], pairs: int, device: str) -> dict[str, Any]:
    """Overhead per step: median of with / without - 1 over blocks of two pairs, one in each order.

    What runs second finds other caches than what runs first, by more than the token costs: single pairs would fall into
    two heaps, and their median anywhere between.
    """
    for work in pair * 3:
        seconds(work, device)
    with_token, without = [], []
    for _ in range(-(-pairs // 2)):
        first = seconds(pair[0], device), seconds(pair[1], device)
        second = seconds(pair[1], device), seconds(pair[0], device)
        with_token.append((first[0] + second[1]) / 2)
        without.append((first[1] + second[0]) / 2)
    ratios = [a / b - 1 for a, b in zip(with_token, without, strict=True)]
    return {
        "overhead": round(statistics.median(ratios), 5),
        "interval": [round(value, 5) for value in interval(ratios)],
        "ms_with": round(1e3 * statistics.median(with_token), 3),
        "ms_without": round(1e3 * statistics.median(without), 3),
    }


def cpu_cases(work: Path, batch: int) -> tuple[dict[str, Steps], dict[str, float]]:
    """One token, as the paper has, and the four of the digits preset, on every backend that is installed.

    And the two parts of what one token costs: a longer text without any encoder, and the encoder.
    """
    plain = make_plain_adapter(work / "plain")
    adapters = {
        "1 token": make_adapter(work / "token1", 1),
        "4 tokens": make_adapter(work / "token4", 4),
        f"1 token {REPLACING}": make_adapter(work / "replacing", 1, "replace"),
    }
    backends = ["torch", "onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    cases: dict[str, Steps] = {}
    flops = {}
    for words, adapter in adapters.items():
        flops[words] = round(row_flops(load_fused(adapter)) / row_flops(load_fused(plain)) - 1, 5)
        for backend in backends:
            with_token, without = (open_denoiser(backend, folder, batch) for folder in (adapter, plain))
            cases[f"{backend}, {words}"] = partial(guided_step, with_token), partial(guided_step, without)
    longer = (*TINY_SHAPE[:1], TINY_SHAPE[1] + 1, *TINY_SHAPE[2:])
    for backend in backends:
        as_long = partial(guided_step, open_denoiser(backend, plain, batch, more_text=1), shape=longer)
        cases[f"{backend}, {ENCODER_ALONE}"] = cases[f"{backend}, 1 token"][0], as_long
        cases[f"{backend}, {NO_ENCODER}"] = as_long, cases[f"{backend}, 1 token"][1]
    return cases, flops


def large_cases() -> tuple[dict[str, Steps], dict[str, float]]:
    """The architecture that users have, as large as a CPU can run it often enough; random weights."""
    networks, flops = large_networks("cpu", "fp32")
    return {f"torch, {LARGE} at 128 px, 1 token": torch_steps(networks, "cpu", TorchOptions(2), LARGE_SHAPE)}, flops


def large_networks(device: str, dtype: str) -> tuple[list[ConditionedUNet], dict[str, float]]:
    """With the token and without it, and how much more arithmetic the token is."""
    model = sd15_model(device, dtype)
    plain = FusedModel(ConditionedUNet(model.base.unet, None), model.base, model.info)
    more = round(row_flops(model) / row_flops(plain) - 1, 6)
    return [model.network, plain.network], {f"{LARGE}, 512 px, 1 token": more}


def torch_steps(
    networks: Sequence[ConditionedUNet], device: str, options: TorchOptions, shape: tuple[int, int, int]
) -> Steps:
    with_token, without = (TorchDenoiser(copy.deepcopy(network), device, options) for network in networks)
    return partial(guided_step, with_token, shape=shape), partial(guided_step, without, shape=shape)


def gpu_cases() -> tuple[dict[str, Steps], dict[str, float]]:
    """Eager, so that nothing hides the encoder's launches, and with CUDA graphs, as generation runs."""
    networks, flops = large_networks("cuda", "fp16")
    cases = {
        f"torch {name}, {LARGE}, 1 token": torch_steps(
            networks, "cuda", TorchOptions(2, cuda_graphs=graphs), (64, 77, 768)
        )
        for name, graphs in (("eager", False), ("CUDA graphs", True))
    }
    return cases, flops


def make_plain_adapter(folder: Path) -> Path:
    """The same UNet without encoder: the control."""
    base = load_base(TINY_NAME)
    torch.manual_seed(0)
    add_lora(base.unet, 16, 16, ["to_q", "to_k", "to_v", "to_out.0"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_adapter(folder, base.unet, None, AdapterInfo(base.source, base.fingerprint, None, NAMES, 32, None, {}))
    return folder


def lengthen(base: BaseModel, tokens: int) -> None:
    """Texts longer by so many tokens, whose positions are the last one's."""
    embeddings: Any = base.text_encoder.embeddings
    positions = embeddings.position_embedding.weight
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(
        torch.cat([positions, positions[-1:].expand(tokens, -1)])
    )
    embeddings.position_ids = torch.arange(len(positions) + tokens)[None]
    base.text_encoder.config.max_position_embeddings = base.tokenizer.model_max_length = len(positions) + tokens


def open_denoiser(backend: str, adapter: Path, batch: int, more_text: int = 0) -> Any:
    """Exported for guided steps of two calls, like generation's."""
    model = load_fused(adapter)
    lengthen(model.base, more_text)
    if backend == "torch":
        return TorchDenoiser(model.network, "cpu", TorchOptions(2))
    export, facts = adapter.with_name(f"{adapter.name}-export{more_text or ''}"), model_facts(model, adapter, 1.0)
    make_export(  # takes over what is there and fits
        Order(facts, export_requests(model, facts, "fp32", 21, {}, shared_calls=2), {}, "bench"),
        export,
        adapter.with_name("part"),
    )
    settings = GenerateConfig.model_validate({"backend": backend, "batch_size": batch})
    opened = choose_backend(Wanted(adapter, model.info, settings, "cpu", export, frozenset({2}))).opened
    assert opened is not None
    return opened.denoiser


def guided_step(denoiser: Any, batch: int, *, shape: tuple[int, int, int] = TINY_SHAPE) -> Step:
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
    return lambda: call_alone(denoiser, *inputs)


if __name__ == "__main__":
    main()
