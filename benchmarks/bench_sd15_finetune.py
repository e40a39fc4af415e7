"""What fine-tuning Stable Diffusion 1.5 takes on a GPU: seconds per optimiser step and peak memory, 512 px.

    python benchmarks/bench_sd15_finetune.py              the sd15 preset's settings at several batch sizes
    python benchmarks/bench_sd15_finetune.py --sketch     the same code on a toy architecture and a CPU

The real training loop on the real architecture with random weights; latents and texts are random too, as they would
come from the cache. Encoding images is not part of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import gpu_or_sketch, release, seconds, write_result
from rivals import NAMES, sd15_model

from dcdm_cli.run.presets import PRESETS
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.training.dataset import TrainingSet
from dcdm_cli.training.loop import Trainer

TITLE = "Fine-tuning: SD 1.5 architecture, random weights, 512 px, the sd15 preset"
IMAGES, TOKENS, WARM, STEPS = 64, 77, 2, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 8, 16))
    options = parser.parse_args()
    name = gpu_or_sketch("bench_sd15_finetune", sketch=options.sketch)
    if name is None:
        return
    batches = (1, 2) if options.sketch else tuple(options.batches)
    rows = [row(batch, checkpointing, options.sketch) for checkpointing in (True, False) for batch in batches]
    headline = {"images/s at most": max((row["images/s"] for row in rows if row["images/s"]), default=None)}
    write_result(name, {"title": TITLE, "tables": [sheet(rows)], "table": rows}, headline)


def row(batch: int, checkpointing: bool, sketch: bool) -> dict[str, Any]:
    known: dict[str, Any] = {"batch": batch, "gradient checkpointing": checkpointing}
    try:
        return {**known, **measured(batch, checkpointing, sketch)}
    except torch.OutOfMemoryError:
        return {**known, "seconds per step": None, "images/s": None, "peak GiB": "out of memory"}
    finally:
        release()


def measured(batch: int, checkpointing: bool, sketch: bool) -> dict[str, Any]:
    device, settings = ("cpu" if sketch else "cuda"), {**PRESETS["sd15"]["finetune"]}
    settings |= {"batch_size": batch, "gradient_checkpointing": checkpointing}
    settings |= {"precision": "fp32" if sketch else "bf16"}
    config = FinetuneConfig.model_validate(settings)
    base = sd15_model(device, config.precision, small=sketch).base
    if not sketch:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(base, training_set(base), len(NAMES), config, Path(folder), Job(device))
        for _ in range(WARM):
            trainer.train_step()
        times = [seconds(trainer.train_step, device) for _ in range(2 if sketch else STEPS)]
    step = statistics.median(times)
    peak = None if sketch else round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return {"seconds per step": round(step, 4), "images/s": round(batch / step, 2), "peak GiB": peak}


def training_set(base: Any) -> TrainingSet:
    torch.manual_seed(0)
    side, width = base.unet.config["sample_size"], base.text_encoder.config.hidden_size
    labels = torch.arange(IMAGES) % len(NAMES)
    latents, text = torch.randn(IMAGES, 4, side, side), torch.randn(len(NAMES) + 1, TOKENS, width)
    return TrainingSet(latents.numpy(), text.numpy(), labels, labels, torch.rand(IMAGES), torch.arange(IMAGES))


def sheet(rows: list[dict[str, Any]]) -> dict[str, Any]:
    cells = [["yes" if value is True else "no" if value is False else value for value in row.values()] for row in rows]
    return {"title": "Optimiser steps, latents and texts from the cache", "columns": list(rows[0]), "rows": cells}


if __name__ == "__main__":
    main()
