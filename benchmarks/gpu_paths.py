"""The product path on a GPU, step by step: what each lever gives, and the sd15 preset as its users run it.

    python benchmarks/gpu_paths.py              SD 1.5's architecture with random weights, 512 px
    python benchmarks/gpu_paths.py --sketch     the same code on a toy architecture and a CPU

Every path makes PNG files through `run_plan`, as `dcdm generate` does. "one call" is the cost of a distilled adapter:
its second LoRA is part of the weights. "as shipped" is the preset with scoring by the packaged features. Paths whose
images must equal the first path's are compared with it before anything is timed, and the script ends without a result
when one of them does not. diffusers' pipeline, eager and on two calls, is timed first, and the best matrix product, for
what the paths are held against. Writes results/gpu_paths.json, path by path.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_sd15 import JUDGED, SHIPPED, judge, sentences
from common import WORK, gpu_or_sketch, interleaved, matmul_ceiling, release, seconds, write_result
from rivals import CALLS, Diffusers, Ours, config, plan_of, row_flops, sd15_model, torch_engine

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

SHIPPED_PATH = "the sd15 preset as shipped, scored"
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
class Yardstick:
    """What the paths are held against. diffusers: images/s of its pipeline, eager. ceiling: FLOP/s of the best matrix
    product. row_flops: floating-point operations of one row through the network."""

    diffusers: float
    ceiling: float
    row_flops: int


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
        Route(SHIPPED_PATH, shipped, 3, half_vae=True, scored=True, alike=False),
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
    measure_all(name, place, time.monotonic() + 60 * options.minutes)


def measure_all(name: str, place: Conditions, deadline: float) -> None:
    """Path by path, each saved as soon as it is there. Stops where images that must be alike are not."""
    known = routes(place)[: 4 if place.sketch else None]
    scorer, rows, reference = open_scorer(WORK / "gpu-paths", place.device), [], None
    against = measure_yardstick(place)
    release()
    for route in known:
        if time.monotonic() > deadline:
            break
        made, row = measured(route, place, against, scorer if route.scored else None)
        reference = made if reference is None else reference
        row["values alike"] = alike(made, reference) if route.alike else None
        if route.alike and row["values alike"] < ALIKE:
            sys.exit(f"{route.name} does not make the images of {known[0].name}: no result is written")
        rows.append(row)
        write_result(name, document(rows, place, against, len(known)), rows[-1])
        release()


def open_scorer(folder: Path, device: str) -> Measure:
    """Heads on the packaged features, learnt on the embedded digits: what it costs does not depend on the images."""
    run = Run(folder, preset="digits", quiet=True)
    run.score(method="features")
    return Scorer.load(folder / "scorer", device).verdicts


def measure_yardstick(place: Conditions) -> Yardstick:
    model = sd15_model(place.device, place.precision, small=place.sketch)
    flops, settings = row_flops(model), config(place.steps, precision=place.precision)
    rival = Diffusers(model, settings, place.device)

    def to_png(images: int) -> None:
        rival.to_files(images, place.batch, emptied())

    to_png(place.batch)
    rate = 2 * place.batch / seconds(lambda: to_png(2 * place.batch), place.device)
    kind = "float32" if place.device == "cpu" else "bfloat16"
    return Yardstick(rate, matmul_ceiling(kind, place.device, rounds=3 if place.sketch else 10), flops)


def measured(
    route: Route, place: Conditions, against: Yardstick, measure: Measure | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """(two images for comparison, images/s end to end to PNG files and the seconds before the first)"""
    started = time.monotonic()
    engine = open_route(route, place)
    made = parity_images(engine)
    rate, warm = images_per_second(engine, place.device, measure)
    calls, steps, batch = route.calls, engine.config.steps, engine.config.batch_size
    arithmetic = rate * steps * calls * against.row_flops
    row = {"path": route.name, "batch": batch, "steps": steps, "calls": calls, "images/s": round(rate, 3)}
    row["times diffusers eager"] = round(rate / against.diffusers, 3)
    row["of the ceiling, end to end"] = round(arithmetic / against.ceiling, 3)
    row["of the ceiling, network"] = network_share(engine, place.device, against) if calls == CALLS else None
    return made, {**row, "seconds to open": round(warm - started, 1)}


def parity_images(engine: Engine) -> np.ndarray:
    """Two images of few steps, uint8 [2, H, W, 3]."""
    few = sized(engine, steps=min(4, engine.config.steps))
    return np.concatenate([images for _, images in render(few, plan_of(2, "parity").rows(), Job())])


def images_per_second(engine: Engine, device: str, measure: Measure | None) -> tuple[float, float]:
    """(images/s to PNG files over two batches, `time.monotonic()` when they were begun)"""
    batch = engine.config.batch_size
    to_files(engine, plan_of(batch, engine.generator), measure)  # compiles, records graphs, fills caches
    plan, warm = plan_of(2 * batch, engine.generator), time.monotonic()
    return 2 * batch / seconds(lambda: to_files(engine, plan, measure), device), warm


def network_share(engine: Engine, device: str, against: Yardstick) -> float:
    """Share of the ceiling in a guided step of `CALLS` calls of the network alone."""
    batch = engine.config.batch_size
    step = Ours(engine).step(batch)
    taken = statistics.median(interleaved({"": step}, 5, device)[""])
    return round(CALLS * batch * against.row_flops / taken / against.ceiling, 3)


def open_route(route: Route, place: Conditions) -> Engine:
    model = sd15_model(place.device, place.precision, small=place.sketch)
    engine = torch_engine(model, route.settings, place.device, TorchOptions(route.calls, compile=route.compile))
    if route.half_vae and not place.sketch:
        return dataclasses.replace(engine, decode=torch_decoder(model.base.vae, torch.float16))
    return engine


def sized(engine: Engine, *, steps: int) -> Engine:
    return dataclasses.replace(engine, config=engine.config.model_copy(update={"steps": steps}))


def to_files(engine: Engine, plan: Plan, measure: Measure | None) -> None:
    run_plan(plan, engine, emptied(), Job(), measure)


def emptied() -> Path:
    folder = WORK / "gpu-paths-images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def alike(made: np.ndarray, reference: np.ndarray) -> float:
    """Share of values within 4 of 255."""
    return round(float((np.abs(made.astype(int) - reference.astype(int)) <= 4).mean()), 5)


def document(rows: list[dict[str, Any]], place: Conditions, against: Yardstick, known: int) -> dict[str, Any]:
    """known: how many paths there are to be."""
    headline, where = summarise(rows), f"{place.precision}, {place.device}"
    return {
        "title": f"The product path, step by step: SD 1.5 architecture, random weights, 512 px, {where}",
        "sentences": sentences(headline),
        "tables": [sheet(rows)],
        "place": dataclasses.asdict(place),
        "against": dataclasses.asdict(against),
        "complete": len(rows) == known,
        "table": rows,
        "headline": headline,
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each goal as far as it was measured, by the best of its paths."""
    shares = {row["of the ceiling, network"] for row in rows if row["batch"] == JUDGED} - {None}
    found = {
        "times diffusers eager": [row["times diffusers eager"] for row in rows if row["values alike"] is not None],
        f"share of the ceiling at batch {JUDGED}": list(shares),
        "distilled, times diffusers eager": [row["times diffusers eager"] for row in rows if row["calls"] == 1],
        SHIPPED: [row["images/s"] for row in rows if row["path"] == SHIPPED_PATH],
    }
    return judge({name: max(values) for name, values in found.items() if values})


def sheet(rows: list[dict[str, Any]]) -> dict[str, Any]:
    table = [["-" if value is None else value for value in row.values()] for row in rows]
    return {"title": "End to end to PNG files; diffusers: eager, two calls", "columns": list(rows[0]), "rows": table}


if __name__ == "__main__":
    main()
