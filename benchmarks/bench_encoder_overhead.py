"""What the difficulty token costs: latency of one guided step with and without it (the paper reports about 8 %).

    python benchmarks/bench_encoder_overhead.py           tiny base and SD 1.5's architecture, CPU, about 12 minutes
    python benchmarks/bench_encoder_overhead.py --gpu     Stable Diffusion 1.5's architecture at 512 px, fp16

Both networks have the same UNet weights; one has the encoder and its tokens, the other neither. They take turns in
pairs of alternating order; the overhead is the median over blocks of two pairs, averaged over several openings of the
networks, with a bootstrap interval. Writes results/bench_encoder_overhead.json (or _gpu) and ends with it as a JSON
line.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import WORK, mean_of_medians, seconds, write_result
from rivals import NAMES, call_alone, cpu_backends, make_adapter, row_flops, sd15_model, write_export

from dcdm_cli.backends.choice import Wanted, choose_backend
from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.fused import FusedModel, load_fused
from dcdm_cli.model.lora import add_lora
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.run.settings import GenerateConfig

GOAL = 0.01
Step = Callable[[], Any]
Steps = tuple[Callable[[int], Step], Callable[[int], Step]]  # batch -> guided step, with the token and without
LARGE = "SD 1.5's architecture"
PLAIN = "no encoder"
REPLACING = "in place of a padding token"  # mode `replace`: no text longer than without it
NO_ENCODER = "no encoder, text longer by a token"  # what a token costs that comes from nowhere
ENCODER_ALONE = "1 token, against a text as long"  # and what the encoder adds to that
TINY_SHAPE = (8, 16, 64)
LONGER_SHAPE = (8, 17, 64)
LARGE_SHAPE = (16, 77, 768)  # at 128 px: the fewer pixels, the more the token weighs


@dataclass(frozen=True)
class Block:
    """Seconds of a step."""

    with_token: float
    without: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--large-pairs", type=int, default=40, help="of SD 1.5's architecture on the CPU, batch 1")
    parser.add_argument("--openings", type=int, default=5, help="of each of the tiny base's networks")
    parser.add_argument("--batches", type=int, nargs="+", default=(8, 32))
    options = parser.parse_args()
    name = "bench_encoder_overhead" + ("_gpu" if options.gpu else "")
    if options.gpu and not torch.cuda.is_available():
        print(json.dumps({"name": name, "measured": False, "reason": "no CUDA GPU: not measured"}))
        return
    table, flops = on_gpu(options) if options.gpu else on_cpu(options)
    headlines = summarise(table)
    document = {
        "title": "What the difficulty token costs",
        "sentences": [sentence(row) for row in headlines],
        "tables": [sheet(table)],
    }
    headline = {"headline": headlines}
    write_result(name, {**document, "cases": table, "more_arithmetic": flops, **headline}, headline)


def on_cpu(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows, and how much more arithmetic each token is."""
    adapters = make_adapters(WORK / "overhead")
    open_cases = partial(cpu_cases, adapters, max(options.batches))
    table = measured(open_cases, options.batches, options.pairs, "cpu", options.openings)
    networks, more = large_networks("cpu", "fp32")
    table += measured(lambda: large_cases(networks), (1,), options.large_pairs, "cpu")
    return table, more_flops(adapters) | more


def on_gpu(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    networks, more = large_networks("cuda", "fp16")
    return measured(lambda: gpu_cases(networks), options.batches, options.pairs, "cuda"), more


def measured(
    open_cases: Callable[[], dict[str, Steps]], batches: Sequence[int], pairs: int, device: str, openings: int = 1
) -> list[dict[str, Any]]:
    """Every network is opened several times, for a part of the pairs each: where its memory happens to lie makes up to
    3 % of a step, for as long as it is open."""
    times: dict[tuple[str, int], list[list[Block]]] = {}
    for _ in range(openings):
        for case, (with_token, without) in open_cases().items():
            for batch in batches:
                blocks = compare((with_token(batch), without(batch)), pairs // openings, device)
                times.setdefault((case, batch), []).append(blocks)
                print(case, batch, overhead([blocks]), flush=True)
    return [{"case": case, "batch": batch, **overhead(parts)} for (case, batch), parts in times.items()]


def summarise(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count: one token, as the paper has, on each network's fastest backend and best batch.

    And its two parts; a longer text without an encoder has no goal, as no encoder can change it.
    """
    kinds = [
        [row for row in table if row["case"].endswith("1 token") and LARGE in row["case"]],
        [row for row in table if row["case"].endswith("1 token") and LARGE not in row["case"]],
        [row for row in table if row["case"].endswith(REPLACING)],
        [row for row in table if row["case"].endswith(ENCODER_ALONE)],
        [row for row in table if row["case"].endswith(NO_ENCODER)],
    ]
    best = [min(rows, key=lambda row: row["ms_without"] / row["batch"]) for rows in kinds if rows]
    return [{key: row[key] for key in ("overhead", "interval", "case", "batch")} | judgement(row) for row in best]


def judgement(row: dict[str, Any]) -> dict[str, Any]:
    return {} if row["case"].endswith(NO_ENCODER) else {"goal": GOAL, "met": row["overhead"] <= GOAL}


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


def compare(pair: tuple[Step, Step], pairs: int, device: str) -> list[Block]:
    """Blocks of two pairs, one in each order.

    What runs second finds other caches than what runs first, by more than the token costs: single pairs would fall into
    two heaps, and their median anywhere between.
    """
    for work in pair * 3:
        seconds(work, device)
    blocks = []
    for _ in range(-(-pairs // 2)):
        first = seconds(pair[0], device), seconds(pair[1], device)
        second = seconds(pair[1], device), seconds(pair[0], device)
        blocks.append(Block((first[0] + second[1]) / 2, (first[1] + second[0]) / 2))
    return blocks


def overhead(openings: Sequence[Sequence[Block]]) -> dict[str, Any]:
    """Mean over the openings of the median of with / without - 1."""
    value, low, high = mean_of_medians([[block.with_token / block.without - 1 for block in part] for part in openings])
    blocks = [block for part in openings for block in part]
    return {
        "overhead": round(value, 5),
        "interval": [round(low, 5), round(high, 5)],
        "ms_with": round(1e3 * statistics.median(block.with_token for block in blocks), 3),
        "ms_without": round(1e3 * statistics.median(block.without for block in blocks), 3),
    }


def make_adapters(work: Path) -> dict[str, Path]:
    """One token, as the paper has, and the four of the digits preset; and the same UNet without encoder."""
    return {
        PLAIN: make_plain_adapter(work / "plain"),
        "1 token": make_adapter(work / "token1", 1),
        "4 tokens": make_adapter(work / "token4", 4),
        f"1 token {REPLACING}": make_adapter(work / "replacing", 1, "replace"),
    }


def more_flops(adapters: Mapping[str, Path]) -> dict[str, float]:
    """How much more arithmetic the tokens are."""
    flops = {words: row_flops(load_fused(adapter)) for words, adapter in adapters.items()}
    return {words: round(count / flops[PLAIN] - 1, 5) for words, count in flops.items() if words != PLAIN}


def cpu_cases(adapters: Mapping[str, Path], batch: int) -> dict[str, Steps]:
    """On every backend that is installed. And the two parts of what one token costs: a longer text without any encoder,
    and the encoder."""
    cases: dict[str, Steps] = {}
    for backend in cpu_backends():
        step = {words: partial(guided_step, open_denoiser(backend, adapters[words], batch)) for words in adapters}
        cases |= {f"{backend}, {words}": (step[words], step[PLAIN]) for words in adapters if words != PLAIN}
        longer = open_denoiser(backend, adapters[PLAIN], batch, more_text=1)
        as_long = partial(guided_step, longer, shape=LONGER_SHAPE)
        cases[f"{backend}, {NO_ENCODER}"] = as_long, step[PLAIN]
        cases[f"{backend}, {ENCODER_ALONE}"] = step["1 token"], as_long
    return cases


def large_cases(networks: Sequence[ConditionedUNet]) -> dict[str, Steps]:
    """The architecture that users have, as large as a CPU can run it often enough; random weights."""
    return {f"torch, {LARGE} at 128 px, 1 token": torch_steps(networks, "cpu", TorchOptions(2), LARGE_SHAPE)}


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


def gpu_cases(networks: Sequence[ConditionedUNet]) -> dict[str, Steps]:
    """Eager, so that nothing hides the encoder's launches, and with CUDA graphs, as generation runs."""
    return {
        f"torch {name}, {LARGE}, 1 token": torch_steps(
            networks, "cuda", TorchOptions(2, cuda_graphs=graphs), (64, 77, 768)
        )
        for name, graphs in (("eager", False), ("CUDA graphs", True))
    }


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
    """For guided steps of two calls, like generation's."""
    if backend == "torch":
        return TorchDenoiser(load_with_text(adapter, more_text).network, "cpu", TorchOptions(2))
    model, export = exported(adapter, more_text)
    settings = GenerateConfig.model_validate({"backend": backend, "batch_size": batch})
    opened = choose_backend(Wanted(adapter, model.info, settings, "cpu", export, frozenset({2}))).opened
    assert opened is not None
    return opened.denoiser


def load_with_text(adapter: Path, more_text: int) -> FusedModel:
    model = load_fused(adapter)
    lengthen(model.base, more_text)
    return model


def exported(adapter: Path, more_text: int = 0) -> tuple[FusedModel, Path]:
    """The model and the folder with its graphs, for guided steps of two calls; made unless it is there already."""
    model = load_with_text(adapter, more_text)
    export = adapter.with_name(f"{adapter.name}-export{more_text or ''}")
    write_export(model, adapter, export)
    return model, export


def guided_step(denoiser: Any, batch: int, *, shape: tuple[int, int, int] = TINY_SHAPE) -> Step:
    inputs = guided_inputs(batch, shape, denoiser.device)
    return lambda: call_alone(denoiser, *inputs)


def guided_inputs(batch: int, shape: tuple[int, int, int], device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """shape: latent side, text tokens, their width."""
    side, length, width = shape
    rows = 2 * batch
    return (
        torch.randn(batch, 4, side, side, device=device).repeat(2, 1, 1, 1),
        torch.full((rows,), 500.0, device=device),
        torch.randn(rows, length, width, device=device),
        torch.arange(rows, device=device) % len(NAMES),
        torch.linspace(0, 1, rows, device=device),
    )


if __name__ == "__main__":
    main()
