"""The product path on a GPU, step by step: what each lever gives, and the sd15 preset as its users run it.

    python benchmarks/gpu_paths.py              SD 1.5's architecture with random weights, 512 px
    python benchmarks/gpu_paths.py --sketch     the same code on a toy architecture and a CPU

Every path makes PNG files through `run_plan`, as `dcdm generate` does. "one call" is the cost of a distilled adapter:
its second LoRA is part of the weights. "as shipped" is the preset with scoring by the packaged features. Paths whose
images must equal the first path's are compared with it before anything is timed, and the script ends without a result
when one of them does not. Writes results/gpu_paths.json, path by path.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import WORK, gpu_or_sketch, release, seconds, write_result
from rivals import config, plan_of, sd15_model, torch_engine

from dcdm_cli import Run
from dcdm_cli.backends.torch_backend import TorchOptions
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.difficulty.verdict import Measure
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.run import run_plan
from dcdm_cli.model.latents import torch_decoder
from dcdm_cli.run.presets import PRESETS
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import GenerateConfig

ALIKE = 0.98  # share of values within 4 of 255: half precision rounds, wrong wiring does not


@dataclass(frozen=True)
class Conditions:
    """Where the paths are measured."""

    device: str
    precision: str
    batch: int
    steps: int
    sketch: bool


@dataclass(frozen=True)
class Route:
    """One way to images. calls: network calls of a guided step. alike: its images must equal the first route's."""

    name: str
    settings: GenerateConfig
    calls: int
    compile: bool = False
    half_vae: bool = False
    scored: bool = False
    alike: bool = True


def routes(place: Conditions) -> list[Route]:
    """Each adds one lever to the one before, then one call, then the preset."""
    plain = config(place.steps, precision=place.precision, batch_size=place.batch, decode_batch=min(place.batch, 8))
    one = plain.model_copy(update={"text_guidance": 1.0, "difficulty_guidance": 1.0})
    shipped = GenerateConfig.model_validate({**PRESETS["sd15"].get("generate", {}), "precision": place.precision})
    if place.sketch:
        shipped = shipped.model_copy(update={"steps": 3})
    return [
        Route("two calls, VAE in fp32", plain, 2),
        Route("two calls, VAE in half precision", plain, 2, half_vae=True),
        Route("one call, as distilled", one, 1, half_vae=True, alike=False),
        Route("the sd15 preset as shipped, scored", shipped, 3, half_vae=True, scored=True, alike=False),
        Route("two calls, compiled", plain, 2, compile=True, half_vae=True),
        Route("one call, as distilled, compiled", one, 1, compile=True, half_vae=True, alike=False),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", action="store_true")
    parser.add_argument("--minutes", type=float, default=4.0, help="no path is begun after that")
    options = parser.parse_args()
    name = gpu_or_sketch("gpu_paths", sketch=options.sketch)
    if name is None:
        return
    place = Conditions("cpu", "fp32", 2, 2, True) if options.sketch else Conditions("cuda", "fp16", 32, 20, False)
    deadline = time.monotonic() + 60 * options.minutes
    known = routes(place)[: 4 if options.sketch else None]
    scorer, rows, reference = open_scorer(WORK / "gpu-paths", place.device), [], None
    for route in known:
        if time.monotonic() > deadline:
            break
        made, row = measured(route, place, scorer if route.scored else None)
        reference = made if reference is None else reference
        row["values alike"] = alike(made, reference) if route.alike else None
        if route.alike and row["values alike"] < ALIKE:
            sys.exit(f"{route.name} does not make the images of {known[0].name}: no result is written")
        rows.append(row)
        found = {"place": dataclasses.asdict(place), "complete": len(rows) == len(known), "table": rows}
        write_result(name, found, found)
        release()


def open_scorer(folder: Path, device: str) -> Measure:
    """Heads on the packaged features, learnt on the embedded digits: what it costs does not depend on the images."""
    run = Run(folder, preset="digits", quiet=True)
    run.score(method="features")
    return Scorer.load(folder / "scorer", device).verdicts


def measured(route: Route, place: Conditions, measure: Measure | None) -> tuple[np.ndarray, dict[str, Any]]:
    """(two images for comparison, images/s end to end to PNG files and the seconds before the first)"""
    started = time.monotonic()
    engine = open_route(route, place)
    batch = engine.config.batch_size
    two = sized(engine, steps=min(4, engine.config.steps))
    made = [np.asarray(image) for _, images in render(two, plan_of(2, "parity").rows(), Job()) for image in images]
    to_files(engine, plan_of(batch, engine.generator), measure)  # compiles, records graphs, fills caches
    opened, images = time.monotonic() - started, 2 * batch
    plan = plan_of(images, engine.generator)
    rate = images / seconds(lambda: to_files(engine, plan, measure), place.device)
    row = {"path": route.name, "batch": batch, "steps": engine.config.steps, "calls": route.calls}
    return np.stack(made), {**row, "images/s": round(rate, 3), "seconds to open": round(opened, 1)}


def open_route(route: Route, place: Conditions) -> Engine:
    model = sd15_model(place.device, place.precision, small=place.sketch)
    engine = torch_engine(model, route.settings, place.device, TorchOptions(route.calls, compile=route.compile))
    if route.half_vae and not place.sketch:
        return dataclasses.replace(engine, decode=torch_decoder(model.base.vae, torch.float16))
    return engine


def sized(engine: Engine, *, steps: int) -> Engine:
    return dataclasses.replace(engine, config=engine.config.model_copy(update={"steps": steps}))


def to_files(engine: Engine, plan: Plan, measure: Measure | None) -> None:
    folder = WORK / "gpu-paths-images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_plan(plan, engine, folder, Job(), measure)


def alike(made: np.ndarray, reference: np.ndarray) -> float:
    """Share of values within 4 of 255."""
    return round(float((np.abs(made.astype(int) - reference.astype(int)) <= 4).mean()), 5)


if __name__ == "__main__":
    main()
