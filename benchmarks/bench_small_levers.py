"""What two small levers are worth: attention's projections in one product, and a faster text encoder.

    python benchmarks/bench_small_levers.py       about 5 minutes on one core

Both by processor time, of one thread. Projections: the tiny base's network, and the attention of Stable Diffusion 1.5's
first block, as `drop_unit_scales` leaves them and joined by `join_projections`, in turn. Text encoder: its share of a
generation run of the tiny base, for one caption per class and for a caption of each image's own, and by counting
operations of Stable Diffusion 1.5: what a faster encoder could save at most. Writes results/bench_small_levers.json and
ends with it as a JSON line.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import WORK, in_turn, mean_of_medians, median_ratio, write_result
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from rivals import CALLS, config, make_adapter, plan_of, write_export
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from dcdm_cli.generation.engine import Engine, open_engine, render
from dcdm_cli.generation.prompts import PromptCache
from dcdm_cli.model.base import encode_text, load_base
from dcdm_cli.model.denoiser import split_gates
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.model.unscaled import drop_unit_scales, join_projections
from dcdm_cli.run.progress import Job

BATCHES = (1, 8, 32)
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    joined = [compared(*case, options.rounds) for case in cases()]
    text = [*measured_shares(options.images), counted_share()]
    slowest = min(joined, key=lambda row: row["times as fast"])["times as fast"]
    largest = max(row["largest difference"] for row in joined)
    per_class, per_image, counted = (row["share"] for row in text)
    sentences = [
        f"Joined projections: {slowest:.3f} times as fast or more, largest difference {largest:.1e}.",
        f"The text encoder takes {per_class:.2%} of a run with one caption per class, {per_image:.2%} with one "
        "per image.",
        f"Of Stable Diffusion 1.5 at 512 px, with a caption per image, it takes {counted:.3%} of the operations.",
    ]
    document = {
        "title": "Two small levers: projections in one product, the text encoder",
        "sentences": sentences,
        "tables": [
            sheet("Attention's projections, apart and joined, in turn", joined),
            sheet("What the text encoder takes of a run", text),
        ],
    }
    headline = {
        "joined": slowest,
        "difference": largest,
        "text per class": 100 * per_class,
        "text per image": 100 * per_image,
        "text counted": 100 * counted,
    }
    more = {"threads": torch.get_num_threads(), "joined": joined, "text": text, "headline": headline}
    write_result("bench_small_levers", {**document, **more}, headline)


def sheet(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = list(rows[0])
    return {
        "title": title,
        "columns": columns,
        "rows": [[shown(column, row[column]) for column in columns] for row in rows],
    }


def shown(column: str, value: Any) -> Any:
    return "-" if value is None else f"{value:.2%}" if column == "share" else value


def cases() -> list[tuple[str, torch.nn.Module, tuple[Any, ...]]]:
    """(What, network or layer, inputs), the network's with the rows of a guided step."""
    base = load_base(TINY_NAME)
    drop_unit_scales(base.unet)
    split_gates(base.unet)
    base.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    tokens, width = base.text_shape
    found: list[tuple[str, torch.nn.Module, tuple[Any, ...]]] = []
    for batch in BATCHES:
        rows = CALLS * batch
        given = torch.randn(rows, 4, 8, 8), torch.full((rows,), 500.0), torch.randn(rows, tokens, width)
        found.append((f"tiny base, batch {batch}", base.unet, given))
    for name, context in (("to itself", None), ("to the text", 768)):
        layer = Attention(320, cross_attention_dim=context, heads=8, dim_head=40)
        drop_unit_scales(layer)
        text = () if context is None else (torch.randn(CALLS, 77, context),)
        found.append((f"SD 1.5's first attention {name}", layer, (torch.randn(CALLS, 1024, 320), *text)))
    return found


def compared(name: str, apart: torch.nn.Module, inputs: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    joined = copy.deepcopy(apart)
    join_projections(joined)
    works: dict[str, Callable[[], Any]] = {"apart": partial(run, apart, inputs), "joined": partial(run, joined, inputs)}
    times = in_turn({name: partial(processor_seconds, work) for name, work in works.items()}, rounds)
    _, low, high = mean_of_medians([[a / b for a, b in zip(times["apart"], times["joined"], strict=True)]])
    return {
        "network": name,
        "times as fast": round(median_ratio(times["apart"], times["joined"]), 3),
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "largest difference": float((works["apart"]() - works["joined"]()).abs().max()),
    }


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process: other programs on the same cores do not count."""
    clock = time.process_time()
    work()
    return time.process_time() - clock


@torch.inference_mode()
def run(network: torch.nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
    made = network(*inputs)
    return made if isinstance(made, torch.Tensor) else made[0]


def measured_shares(images: int) -> list[dict[str, Any]]:
    """Processor seconds inside the text encoder, of those of the whole run, with the fastest backend that is here."""
    adapter = make_adapter(WORK / "levers" / "adapter")
    export = WORK / "levers" / "export"
    write_export(load_fused(adapter), adapter, export)
    open_here = partial(open_engine, adapter, config(STEPS, batch_size=32), "cpu", export=export)
    plan = list(plan_of(images, "levers").rows())
    own = [dataclasses.replace(row, caption=f"{row.caption}, image {i}") for i, row in enumerate(plan)]
    return [share(open_here(), name, rows) for name, rows in (
        ("tiny base, a caption per class", plan), ("tiny base, a caption per image", own),
    )]  # fmt: skip


def share(engine: Engine, name: str, rows: Any) -> dict[str, Any]:
    inside = 0.0

    def encode(captions: list[str]) -> torch.Tensor:
        nonlocal inside
        clock = time.process_time()
        text = encode_text(engine.base, captions)
        inside += time.process_time() - clock
        return text

    timed = dataclasses.replace(engine, prompts=PromptCache(encode, engine.denoiser.device))
    clock = time.process_time()
    made = sum(len(images) for _, images in render(timed, rows, Job()))
    whole = time.process_time() - clock
    spent = {"processor seconds": round(whole, 2), "in the encoder": round(inside, 3), "share": inside / whole}
    return {"run": f"{name}, {engine.denoiser.name}", "images": made, **spent}


def counted_share() -> dict[str, Any]:
    """Operations of one image with a caption of its own: the encoder once, the network in every guided step."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                               num_attention_heads=12, max_position_embeddings=77))  # fmt: skip
        step = unet, (torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768))
        text = encoder, (torch.zeros(1, 77, dtype=torch.long),)
        once, each = (operations(*part) for part in (text, step))
    whole = once + CALLS * STEPS * each
    name = "Stable Diffusion 1.5 at 512 px, a caption per image, by operations"
    return {"run": name, "images": 1, "processor seconds": None, "in the encoder": None, "share": once / whole}


def operations(network: torch.nn.Module, inputs: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
