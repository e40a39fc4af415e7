"""Images per second, end to end to PNG files: our backends against diffusers' own pipeline, in one run.

    python benchmarks/bench_generate.py             the tiny base on a CPU, about 25 minutes on 2 cores
    python benchmarks/bench_generate.py --gpu       Stable Diffusion 1.5's architecture at 512 px (see bench_sd15.py)

Same weights, prompts, seeds, steps and guidance scale; single draws, neither scored nor chosen: that is timed by
bench_product.py. Parity is checked first, and nothing is timed without it. Rivals are timed in turn; the ratios are
medians of rounds. Writes results/bench_generate.json and ends with it as a JSON line.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, WORK, best_product, interleaved, median_ratio, square_products, write_result
from rivals import CALLS, PATH, Diffusers, Ours, config, cpu_backends, make_adapter, plan_of, row_flops, write_export

from dcdm_cli.generation.engine import open_engine
from dcdm_cli.model.fused import load_fused

Rival = Diffusers | Ours
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
GOALS = {"batch 8": 2.0, "best against best": 2.5, "share of the ceiling": 0.7}
TOGETHER = 5  # steps of a run, or products, that are timed together


def main() -> None:
    options = parse()
    if options.gpu:
        sys.exit(subprocess.call([sys.executable, str(ROOT / "benchmarks" / "bench_sd15.py"), *options.rest]))
    work = WORK / "generate"
    rivals = make_rivals(work, options.steps)
    parity = check_parity(rivals, options.parity_images)
    sweep = sweep_batches(rivals, work, options)
    best = {name: max(sweep[name], key=lambda b, n=name: sweep[n][b]) for name in rivals}
    duels = {
        "batch 8": duel(rivals, dict.fromkeys(rivals, 8), work, options),
        "best against best": duel(rivals, best, work, options),
    }
    network, ceiling = measure_network(rivals, best, row_flops(load_fused(work / "adapter")), options.rounds)
    result = {
        "task": f"tiny base, 32 px, {options.steps} steps of dpmpp, guidance scale 2, fp32, to PNG files",
        "threads": torch.get_num_threads(),
        "parity": parity,
        "images_per_second": sweep,
        "best_batch": best,
        "duels": duels,
        "matmul_ceiling_gflops": round(ceiling / 1e9, 1),
        "network": network,
        "gpu": "not measured" if not torch.cuda.is_available() else "bench_generate.py --gpu",
    }
    headline = summarise(result)
    print_tables(result)
    document = {
        "title": f"Images per second, lossless ({PATH}): {result['task']}",
        "sentences": sentences(headline),
        "tables": sheets(result),
    }
    write_result("bench_generate", {**document, **result, "headline": headline}, headline)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="run bench_sd15.py with the remaining arguments")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7, help="of each duel")
    parser.add_argument("--images", type=int, default=128, help="per timed run, at least one batch")
    parser.add_argument("--parity-images", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options, options.rest = parser.parse_known_args()
    if options.rest and not options.gpu:
        parser.error(f"unknown arguments {options.rest}")
    return options


def make_rivals(work: Path, steps: int) -> dict[str, Rival]:
    """Adapter and export are made once and loaded like any user's."""
    adapter, export = make_adapter(work / "adapter"), work / "export"
    write_export(load_fused(adapter), adapter, export, afresh=True)
    rivals: dict[str, Rival] = {"diffusers": Diffusers(load_fused(adapter), config(steps), "cpu")}
    for name in cpu_backends():
        rivals[name] = Ours(open_engine(adapter, config(steps, backend=name), "cpu", export=export))
    return rivals


def check_parity(rivals: dict[str, Rival], images: int) -> dict[str, Any]:
    """Against diffusers' own pipeline. Stops the script where fewer than 99.9 % of the values are within 1 of 255."""
    rows = plan_of(images, "parity").rows()
    made = {
        name: np.stack([np.asarray(i) for i in rival.images(rows, 16)]).astype(int) for name, rival in rivals.items()
    }
    reference, parity = made["diffusers"], {}
    for name, pictures in made.items():
        difference = np.abs(pictures - reference)
        parity[name] = {"within_1": round(float((difference <= 1).mean()), 6), "largest": int(difference.max())}
        if parity[name]["within_1"] < 0.999:
            sys.exit(f"{name} does not make diffusers' images: {parity[name]}; nothing was timed")
    return {"images": images, "spread": round(float(reference.std()), 1), **parity}


def in_folder(rival: Rival, images: int, batch: int, folder: Path) -> Callable[[], None]:
    """A timed run: PNG files into a folder of its own, emptied before."""

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rival.to_files(images, batch, folder)

    return run


def sweep_batches(rivals: dict[str, Rival], work: Path, options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """images/s per rival and batch size, from the fastest of three runs each."""
    rates: dict[str, dict[int, float]] = {name: {} for name in rivals}
    for batch in options.batches:
        images = max(batch, options.images)
        times = interleaved({n: in_folder(r, images, batch, work / "out" / n) for n, r in rivals.items()}, 3)
        for name, seconds in times.items():
            rates[name][batch] = round(images / min(seconds), 2)
    return rates


def duel(
    rivals: dict[str, Rival], batch: dict[str, int], work: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Rounds in turn at the given batch sizes; the ratio to diffusers is the median over rounds."""
    images = max(options.images, *batch.values())
    works = {name: in_folder(rival, images, batch[name], work / "out" / name) for name, rival in rivals.items()}
    times = interleaved(works, options.rounds)
    return {
        name: {
            "batch": batch[name],
            "images_per_second": round(images / statistics.median(seconds), 2),
            "times_diffusers": round(median_ratio(times["diffusers"], seconds), 3),
        }
        for name, seconds in times.items()
    }


def measure_network(
    rivals: dict[str, Rival], batch: dict[str, int], flops: int, rounds: int
) -> tuple[dict[str, dict[str, Any]], float]:
    """The network alone at each rival's best batch: arithmetic of the plain network over the time of a guided step.

    And the FLOP/s of the machine's best matrix product, taken in turn with the steps, as the machine's speed drifts by
    more than is to be told apart. Each comes several times together, as in a run: its data are where it left them.
    """
    products = square_products()
    works = {name: rival.step(batch[name]) for name, rival in rivals.items()}
    works |= {name: product.work for name, product in products.items()}
    taken = interleaved({name: partial(repeat, work) for name, work in works.items()}, 3 * rounds)
    times = {name: [seconds / TOGETHER for seconds in several] for name, several in taken.items()}
    ceiling, network = best_product(products, times), {}
    for name in rivals:
        step = statistics.median(times[name])
        rate = CALLS * batch[name] * flops / step
        network[name] = {
            "batch": batch[name],
            "ms_per_step": round(1e3 * step, 3),
            "gflops": round(rate / 1e9, 1),
            "share_of_ceiling": round(rate / ceiling, 3),
        }
    return network, ceiling


def repeat(work: Callable[[], Any]) -> None:
    for _ in range(TOGETHER):
        work()


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Each goal with the best of our backends and whether it was met."""
    ours = [name for name in result["parity"] if name not in ("images", "spread", "diffusers")]
    reached = {
        name: max((result["duels"][name][rival]["times_diffusers"], rival) for rival in ours)
        for name in result["duels"]
    }
    reached["share of the ceiling"] = max((result["network"][rival]["share_of_ceiling"], rival) for rival in ours)
    return {
        name: {"reached": value, "by": rival, "goal": GOALS[name], "met": value >= GOALS[name]}
        for name, (value, rival) in reached.items()
    }


def sentences(headline: dict[str, Any]) -> list[str]:
    """What was aimed at and what came out."""
    units = {"share of the ceiling": "{:.0%} of the machine's fp32 matmul ceiling inside the network"}
    said = []
    for name, entry in headline.items():
        words = units.get(name, f"{{:.2f}} times diffusers' own pipeline ({name})")
        verdict = "met" if entry["met"] else "NOT met"
        said.append(
            f"{entry['by']}: {words.format(entry['reached'])}; goal {words.split()[0].format(entry['goal'])} {verdict}."
        )
    return said


def sheets(result: dict[str, Any]) -> list[dict[str, Any]]:
    batches = sorted(next(iter(result["images_per_second"].values())))
    rates = [[name, *(rate[b] for b in batches)] for name, rate in result["images_per_second"].items()]
    duels = [
        [task, name, entry["batch"], entry["images_per_second"], f"{entry['times_diffusers']:.2f}"]
        for task, rivals in result["duels"].items()
        for name, entry in rivals.items()
    ]
    network = [
        [name, entry["batch"], entry["ms_per_step"], entry["gflops"], f"{entry['share_of_ceiling']:.0%}"]
        for name, entry in result["network"].items()
    ]
    return [
        {"title": "Images/s to PNG files by batch size", "columns": ["", *map(str, batches)], "rows": rates},
        {"title": "In turn, medians", "columns": ["", "engine", "batch", "images/s", "times diffusers"], "rows": duels},
        {
            "title": "The network alone, one guided step",
            "columns": ["engine", "batch", "ms", "GFLOP/s", "of the matmul ceiling"],
            "rows": network,
        },
    ]


def print_tables(result: dict[str, Any]) -> None:
    batches = sorted(next(iter(result["images_per_second"].values())))
    print(f"images/s, {result['task']}", file=sys.stderr)
    print("batch".rjust(12), *(str(batch).rjust(8) for batch in batches), file=sys.stderr)
    for name, rates in result["images_per_second"].items():
        print(name.rjust(12), *(f"{rates[batch]:8.1f}" for batch in batches), file=sys.stderr)
    for name, entry in result["network"].items():
        share = f"{entry['gflops']} GFLOP/s, {entry['share_of_ceiling']:.0%} of the fp32 matmul ceiling"
        print(f"{name.rjust(12)} network at batch {entry['batch']}: {share}", file=sys.stderr)


if __name__ == "__main__":
    main()
