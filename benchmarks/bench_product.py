"""Finished images per second, scored and chosen among draws: one distilled call against diffusers' own pipeline.

    python benchmarks/bench_product.py             makes its run first, as bench_distilled.py does, below bench-work
    python benchmarks/bench_product.py --sketch    the same code on a run that has learnt little; publishes nothing

bench_generate.py compares single draws of the same images; here it is what `dcdm generate` does with the settings of
the digits preset: every draw is scored, what misses its difficulty is drawn again, the best draw of each becomes a PNG.
Ours runs the exported graphs on the CPU backend that `auto` takes. diffusers' pipeline gets the same plan, scorer,
attempts and steps, at the batch that it is best at; it knows one guidance scale, and clips nothing, so that its images
are others and no parity can be asked for. In its place the kept images of the distilled call are held against those of
the guided calls: without difficulties as close to their targets, and labels as often right, no result is written. Times
are taken in turn. Writes results/bench_product.json and ends with a JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_distilled import AGREEMENT, DISTILLED, ERROR, GUIDED, opened, prepare, seen_by_checker
from common import WORK, interleaved, median_ratio, write_result
from PIL import Image
from rivals import Diffusers, Ours

from dcdm_cli import Run
from dcdm_cli.difficulty.verdict import Measure, Verdict, joined
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.render import Pool, render_close, seeded
from dcdm_cli.generation.run import run_plan
from dcdm_cli.generation.shards import Rendered
from dcdm_cli.model.fused import load_fused
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.stages.plan import draw_plan
from dcdm_cli.stages.probe import make_measure, open_run_engine

CHOSEN, FIRST = "diffusers, chosen alike", "diffusers, first draws, not scored"
GOAL = 4.0  # times diffusers' pipeline, kept images
LITTLE = {
    "score": {"steps": 4, "repeats": 1, "at_chance": "warn"},
    "finetune": {"steps": 20, "strength": "none"},
    "distill": {"steps": 10},
    "calibrate": {"enabled": False},
}  # of a sketch: the whole way, in seconds


class Counted:
    """A measure that counts what it is shown: draws."""

    def __init__(self, measure: Measure) -> None:
        self.measure, self.draws = measure, 0

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> Verdict:
        self.draws += len(images)
        return self.measure(images, labels)


class Product:
    """`dcdm generate` on the run, as one of its two adapters."""

    def __init__(self, session: Session, images: int) -> None:
        measure = make_measure(session, Job())
        assert measure is not None, "`prepare` has scored"
        self.session, self.measure = session, Counted(measure)
        self.engine = open_run_engine(session, session.run.adapter, Job())
        self.config = self.engine.config
        self.plan = draw_plan(session, self.config.model_copy(update={"count": images}), self.engine)
        self.batch, self.backend = self.config.batch_size, self.engine.denoiser.name
        self.calls = max(self.engine.guidance.call_counts(self.config.steps))

    def finished(self) -> Iterator[Rendered]:
        return render_close(Ours(self.engine).sized(self.batch), self.plan.rows(), Job(), self.measure)

    def to_files(self, folder: Path) -> None:
        run_plan(self.plan, Ours(self.engine).sized(self.batch), folder, Job(), self.measure)


class Pipeline:
    """diffusers' pipeline with the fine-tuned adapter, for the rows of `product`, which it is measured like."""

    backend, calls = "torch", 2

    def __init__(self, product: Product, batch: int) -> None:
        measure, config = product.measure.measure, product.config
        self.session, self.rows, self.config, self.batch = product.session, product.plan.rows(), config, batch
        fused = load_fused(product.session.run.adapter, lora_scale=config.lora_scale)
        self.rival, self.measure = Diffusers(fused, config, "cpu"), Counted(measure)

    def finished(self) -> Iterator[Rendered]:
        """Chosen as ours are, from one pool of draws that fills its batches."""
        pool = Pool(self.rows, self.config.attempts, self.config.tolerance)
        while pool.given < len(self.rows):
            draws = pool.next_draws(self.batch, self.batch, always_full=False)
            drawn = [seeded(self.rows[place], attempt) for place, attempt in draws]
            images = np.stack([np.asarray(image) for image in self.rival.images(drawn, self.batch)])
            pool.take(draws, images, self.measure(images, np.array([row.label for row in drawn])))
            if (finished := pool.finished()) is not None:
                yield finished

    def to_files(self, folder: Path) -> None:
        for batch in self.finished():
            for row, image in zip(batch.rows, batch.images, strict=True):
                Image.fromarray(image).save(folder / f"{row.sample_id}.png")

    def first_draws(self, folder: Path) -> None:
        """What diffusers' users have without any choice: less work, and images as they come."""
        for row, image in zip(self.rows, self.rival.images(self.rows, self.batch), strict=True):
            image.save(folder / f"{row.sample_id}.png")


@dataclass(frozen=True)
class Kept:
    """The finished images of one way. draws: images that were made for them."""

    rows: Sequence[PlanRow]
    images: np.ndarray
    verdict: Verdict
    draws: int


def main() -> None:
    options, threads = parse(), torch.get_num_threads()
    products = open_products(options, threads)
    pipeline = Pipeline(products[GUIDED], best_batch(products[GUIDED], options))
    ways: dict[str, Product | Pipeline] = {CHOSEN: pipeline, **products}
    table = {name: quality(way, keep(way)) for name, way in ways.items()}
    refused = fallen(table)
    if refused and not options.sketch:
        sys.exit(f"{refused}: nothing was timed")
    works = {name: way.to_files for name, way in ways.items()} | {FIRST: pipeline.first_draws}
    table[FIRST] = {name: table[CHOSEN][name] for name in ("backend", "calls", "batch")} | {"draws an image": 1.0}
    add_speed(table, works, options)
    headline = summarise(table)
    if options.sketch:
        print(json.dumps({"sketch": True, "refused": refused, "headline": headline, "ways": table}))
        return
    write_result("bench_product", {**document(table, headline, options, threads), "headline": headline}, headline)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", action="store_true", help="a minute on a core; publishes nothing")
    parser.add_argument("--run", type=Path, default=WORK / "distilled", help="a run of the digits preset, distilled")
    parser.add_argument("--images", type=int, default=384, help="kept ones, per timed run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=(8, 16, 32, 64, 128), help="to try diffusers with")
    options = parser.parse_args(words)
    if options.sketch:
        options.images, options.rounds, options.batches = 10, 1, (5, 10)
    return options


def open_products(options: argparse.Namespace, threads: int) -> dict[str, Product]:
    """Prepared and exported, each adapter for its own guidance; what is done stays."""
    folder = WORK / "product-sketch" if options.sketch else options.run
    run = prepare(folder, **(LITTLE if options.sketch else {}))
    export(run)
    flags = {"threads": threads}  # the run is prepared on one thread
    return {name: Product(opened(folder, name, **flags), options.images) for name in (GUIDED, DISTILLED)}


def export(run: Run) -> None:
    for guidance in ("calls", "distilled"):
        run.export(generate={"guidance": guidance})


def best_batch(product: Product, options: argparse.Namespace) -> int:
    """The batch at which diffusers' pipeline is done first, chosen alike; the better of two runs each, in turn."""
    pipelines = {batch: Pipeline(product, batch) for batch in options.batches}
    works = {str(batch): into(pipeline.to_files, "sweep") for batch, pipeline in pipelines.items()}
    times = interleaved(works, 2 if options.rounds > 1 else 1)
    return min(pipelines, key=lambda batch: min(times[str(batch)]))


def into(to_files: Callable[[Path], None], name: str) -> Callable[[], None]:
    """A timed run: PNG files into a folder of its own, emptied before."""
    folder = WORK / "product-images" / name

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        to_files(folder)

    return run


def keep(way: Product | Pipeline) -> Kept:
    before, batches = way.measure.draws, list(way.finished())
    verdict = joined([batch.verdict for batch in batches if batch.verdict is not None])
    rows = [row for batch in batches for row in batch.rows]
    return Kept(rows, np.concatenate([batch.images for batch in batches]), verdict, way.measure.draws - before)


def quality(way: Product | Pipeline, kept: Kept) -> dict[str, Any]:
    """How near the kept images are to what was asked for, and whether they show their label."""
    label = np.array([row.label for row in kept.rows])
    misses = np.abs(kept.verdict.difficulty - np.array([row.target_difficulty for row in kept.rows]))
    shows = seen_by_checker(way.session, kept.images, label)
    return {
        "backend": way.backend,
        "calls": way.calls,
        "batch": way.batch,
        "draws an image": round(kept.draws / len(kept.rows), 3),
        "error": round(float(misses.mean()), 4),
        "agreement (scorer)": round(float((kept.verdict.predicted == label).mean()), 4),
        "agreement (checker)": round(float(shows.mean()), 4),
    }


def fallen(table: dict[str, dict[str, Any]]) -> str:
    """What the distilled call's images lack beside those of the guided calls; nothing is an empty text."""
    ours, theirs = table[DISTILLED], table[GUIDED]
    lacking = [name for name in ours if name.startswith("agreement") and ours[name] < theirs[name] - AGREEMENT]
    lacking += ["error"] * (ours["error"] > theirs["error"] + ERROR)
    said = [f"{name} {ours[name]:.3f} against {theirs[name]:.3f}" for name in lacking]
    return f"the distilled call's images fall behind the guided calls' ({', '.join(said)})" if said else ""


def add_speed(
    table: dict[str, dict[str, Any]], works: dict[str, Callable[[Path], None]], options: argparse.Namespace
) -> None:
    """Kept images/s to PNG files, in turn; ratios are medians over the rounds."""
    times = interleaved({name: into(work, "timed") for name, work in works.items()}, options.rounds)
    for name, seconds in times.items():
        table[name]["images/s"] = round(options.images / statistics.median(seconds), 2)
        table[name]["times diffusers"] = round(median_ratio(times[CHOSEN], seconds), 3)
        table[name]["times its first draws"] = round(median_ratio(times[FIRST], seconds), 3)


def summarise(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ours = table[DISTILLED]
    return {
        "reached": ours["times diffusers"],
        "goal": GOAL,
        "met": ours["times diffusers"] >= GOAL,
        "by": ours["backend"],
        "times first draws": ours["times its first draws"],
        "guided calls": table[GUIDED]["times diffusers"],
    }


def document(
    table: dict[str, dict[str, Any]], headline: dict[str, Any], options: argparse.Namespace, threads: int
) -> dict[str, Any]:
    task = f"digits preset as shipped, scored, redrawn, {threads} threads, to PNG files"
    return {
        "title": f"Finished images per second, the product path: {task}",
        "command": "python benchmarks/bench_product.py",
        "sentences": sentences(table, headline),
        "tables": [sheet(table, options.images)],
        "threads": threads,
        "images": options.images,
        "ways": table,
    }


def sentences(table: dict[str, dict[str, Any]], headline: dict[str, Any]) -> list[str]:
    ours, calls, theirs = table[DISTILLED], table[GUIDED], table[CHOSEN]
    verdict = "met" if headline["met"] else "NOT met"
    return [
        f"One distilled call ({ours['backend']}): {headline['reached']:.2f} times diffusers' own pipeline at its best "
        f"batch ({theirs['batch']}), whose draws are scored and chosen alike; goal {GOAL:.2f} {verdict}.",
        f"Against that pipeline's first draws, neither scored nor chosen: {headline['times first draws']:.2f} times.",
        f"Guided by {calls['calls']} calls, not distilled: {headline['guided calls']:.2f} times.",
        f"An image takes {ours['draws an image']:.2f} draws distilled, {calls['draws an image']:.2f} by calls and "
        f"{theirs['draws an image']:.2f} from diffusers' pipeline, which has one guidance scale and clips nothing.",
        f"Kept images miss their difficulty by {ours['error']:.3f} distilled, {calls['error']:.3f} by calls; their "
        f"label is seen in {ours['agreement (checker)']:.1%} and {calls['agreement (checker)']:.1%}.",
    ]


def sheet(table: dict[str, dict[str, Any]], images: int) -> dict[str, Any]:
    columns = list(next(iter(table.values())))
    rows = [[name, *(entry.get(column, "-") for column in columns)] for name, entry in table.items()]
    return {
        "title": f"{images} kept images a run, in turn, medians; the same plan, scorer, attempts and steps",
        "columns": ["", *columns],
        "rows": rows,
    }


if __name__ == "__main__":
    main()
