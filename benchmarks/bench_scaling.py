"""Generation at scale: what the plan, the shards and the ledger cost, and what becomes of killed workers.

    python benchmarks/bench_scaling.py [--run bench-run] [--quick] [--only PART,...]

Images come from a fake denoiser, whose pictures of 8 x 8 pixels follow from the row's seed, except where it says "tiny
base". What a plan's price is worth is measured on copies of a run that `dcdm demo` has finished. Every part runs in a
process of its own, so that peak memory is that part's. About 10 minutes on 2 cores. Writes results/bench_scaling.json
(not with --quick) and ends with one JSON line. --only measures some parts again, of a result made on the same day with
the same versions and hardware; beside another one it writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "benchmarks")]

SHARD = 1024
FORMATS = ("folder", "parquet", "webdataset")
HUNDRED_MILLION = 100_000_000
LISTED = 1000  # names that one listing call of an object store returns
RENDER_S = 0.005  # what the fake of the worker pools waits per image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="everything much smaller, to see that it runs")
    parser.add_argument("--run", type=Path, default=ROOT / "bench-run", help="a run that dcdm demo has finished")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(STEPS)}")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--words", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=os.environ.get("BENCH_DIR")) as folder:
            print(json.dumps(PARTS[options.part](Path(folder), *options.words)))
        return
    chosen = options.only.split(",") if options.only else list(STEPS)
    if "price" in chosen:  # the last part: a missing run must not cost the others
        from finished_run import FinishedRun

        FinishedRun.open(options.run)
    started = time.monotonic()
    results = {name: STEPS[name](options) for name in chosen}
    report(results, round(time.monotonic() - started, 1), written=not options.quick)


def report(results: dict[str, Any], wall_s: float, *, written: bool) -> None:
    """The last line; a whole result is kept, also one of which some parts were measured earlier, here and today."""
    from common import provenance, save

    document = {**provenance("python benchmarks/bench_scaling.py"), "wall_seconds": wall_s, "results": results}
    if written and not complete(results):
        document = with_earlier(document)
    if complete(document["results"]):
        document = presented(document)
        if written:
            save(document, "bench_scaling")
    print(json.dumps(document))


def complete(results: dict[str, Any]) -> bool:
    return set(results) >= set(STEPS)


def with_earlier(document: dict[str, Any]) -> dict[str, Any]:
    """With the parts and the time of the last whole result, if it has the same command, day, hardware and versions."""
    from common import RESULTS

    file, own = RESULTS / "bench_scaling.json", {"wall_seconds", "results"}
    earlier = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if any(earlier.get(key) != value for key, value in document.items() if key not in own):
        return document
    merged = {**earlier["results"], **document["results"]}
    return {**document, "wall_seconds": earlier["wall_seconds"], "results": merged}


def presented(document: dict[str, Any]) -> dict[str, Any]:
    """With what follows from the results: the estimate, the sentences and the tables of docs/results/scale.md."""
    from scaling_tables import estimate, sentences, tables

    measured = document["results"]
    results = {**measured, "estimate": estimate(measured, HUNDRED_MILLION, SHARD, LISTED)}
    texts = {"title": "Scale", "sentences": sentences(results), "tables": tables(results)}
    return {**texts, **document, "results": results}


def part(name: str, *words: object) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--part", name, "--words", *map(str, words)]
    print(f"{name} {' '.join(map(str, words))} ...", end=" ", flush=True, file=sys.stderr)
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    result = json.loads(made.stdout.splitlines()[-1])
    print(result, file=sys.stderr)
    return result


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 4)


def peak_mib() -> int:
    from dcdm_cli.run.memory import resident_peak_mib

    return resident_peak_mib()


def now_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


# Planning


def plan_rows(folder: Path, rows: str) -> dict[str, Any]:
    """1,000 classes with 1,000 captions each, a calibration curve per class."""
    import numpy as np

    from dcdm_cli.difficulty.calibration import Calibration
    from dcdm_cli.generation.plan import PlanInputs, make_plan
    from dcdm_cli.generation.plan_file import PlanFile, write_plan
    from dcdm_cli.generation.targets import parse_target

    classes, count = 1000, int(rows)
    grid = tuple(np.linspace(0, 1, 9).tolist())
    curves = tuple(tuple(g * (0.5 + c / 2 / classes) for g in grid) for c in range(classes))
    inputs = PlanInputs(
        tuple(f"class {c}" for c in range(classes)),
        [[f"a photo of a class {c}, seen for the {i}th time" for i in range(1000)] for c in range(classes)],
        np.linspace(0, 1, 1000, dtype=np.float32),
        0.8,
        Calibration(grid, grid, grid, grid, curves, (), 1000, {}),
    )
    counts = np.full(classes, count // classes)
    counts[: count % classes] += 1
    before, started = now_mib(), time.perf_counter()
    plan = make_plan(inputs, counts, parse_target("normal:0.5,0.1"), 0, "bench", shard_size=SHARD)
    write_plan(plan, folder / "plan.parquet")
    seconds = time.perf_counter() - started
    peak, file = peak_mib(), PlanFile(folder / "plan.parquet")
    return {
        "rows": len(plan),
        "plan_and_write_s": round(seconds, 3),
        "us_per_row": round(seconds / len(plan) * 1e6, 3),
        "verify_s": timed(file.verify),
        "read_one_shard_s": timed(lambda: file.shard_rows(0)),
        "file_bytes": (folder / "plan.parquet").stat().st_size,
        "peak_mib": peak,
        "before_mib": before,
    }


# Runs of the fake


def run_fake(folder: Path, images: str, format: str) -> dict[str, Any]:
    """A whole run, then the same run again, which finds everything finished."""
    from tests.generation.fakes import FakeMaker

    plan, place = fake_run(folder, int(images), format)
    started, watch = time.perf_counter(), Watch()
    run(plan, place, FakeMaker(batch_size=64), watch.job)
    seconds = time.perf_counter() - started
    peak = peak_mib()
    again = timed(lambda: run(plan, place, FakeMaker(batch_size=64)))
    return {
        "images": len(plan),
        "format": format,
        "seconds": round(seconds, 3),
        "startup_s": round(watch.first_s - started, 4),
        "ms_per_image": round(seconds / len(plan) * 1e3, 4),
        "resume_finished_s": again,
        "peak_mib": peak,
        **watch.facts(),
        "shards": plan.shards,
        "record_bytes": total_bytes(place.folder / "shards", "*.json"),
        "row_bytes": total_bytes(place.folder / "shards", "*.parquet"),
    }


def total_bytes(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


class Watch:
    """Notes memory as images are finished, every 64 images at most."""

    def __init__(self) -> None:
        from dcdm_cli.run.progress import Job

        self.first_s, self.noted = 0.0, -64
        self.memory: list[int] = []
        self.job = Job(progress=self._tell)

    def facts(self) -> dict[str, int]:
        tenth = self.memory[len(self.memory) // 10]
        return {"memory_after_a_tenth_mib": tenth, "memory_at_the_end_mib": self.memory[-1]}

    def _tell(self, what: str, done: int, total: int) -> None:
        self.first_s = self.first_s or time.perf_counter()
        if done >= self.noted + 64:
            self.noted = done
            self.memory.append(now_mib())


def fake_run(folder: Path, images: int, format: str, shard: int = SHARD) -> tuple[Any, Any]:
    from dcdm_cli.generation.layout import Layout
    from tests.generation.fakes import NAMES, fake_plan

    plan = fake_plan(images, shard)
    return plan, Layout(folder / format, format, "png", NAMES, plan.shards)


def run(plan: Any, place: Any, maker: Any, job: Any = None) -> Any:
    from dcdm_cli.generation.run import run_shards
    from dcdm_cli.run.progress import Job

    return run_shards(plan, maker, place, job or Job())


# Sources


def scan_tars(folder: Path, images: str) -> dict[str, Any]:
    """`dcdm score`'s reading of a source, here tars that the fake made; then the same again from its chunks."""
    from dcdm_cli.data.candidates import ScanOptions
    from dcdm_cli.data.sources import scan_on_disk
    from tests.generation.fakes import FakeMaker

    plan, place = fake_run(folder, int(images), "webdataset")
    run(plan, place, FakeMaker(batch_size=64))

    def scan(job: Any) -> int:
        spool = folder / "spool"
        return len(scan_on_disk(str(place.folder), ScanOptions(), folder / "kept", spool, "bench", job).manifest)

    started, watch = time.perf_counter(), Watch()
    found = scan(watch.job)
    seconds, peak = time.perf_counter() - started, peak_mib()
    return {
        "images": found,
        "ms_per_image": round(seconds / found * 1e3, 4),
        "startup_s": round(watch.first_s - started, 4),
        "resume_finished_s": timed(lambda: scan(Watch().job)),
        **watch.facts(),
        "peak_mib": peak,
    }


# Workers


def workers(folder: Path, count: str, images: str, kills: str) -> dict[str, Any]:
    """The fake waits for every image, as a process waits for its GPU: what is measured is the handing out."""
    from dcdm_cli.generation.workers import run_pool
    from dcdm_cli.run.progress import Job
    from dcdm_cli.workers.coordinator import WorkerPool
    from tests.generation.fakes import FakeMaker, contents, fake_measure
    from tests.generation.test_workers import Killer

    plan, place = fake_run(folder, int(images), "folder", shard=50)
    transport = local_workers(int(count))
    killer = Killer(transport, int(kills), int(images))
    with WorkerPool(transport, Job(progress=killer.progress)) as pool:
        while len(pool.hellos) < int(count):
            for message in transport.hear(0.1):
                pool._hear_idle(message)
        started = time.perf_counter()
        made = run_pool(plan, pool, place, pool.job)
        seconds = time.perf_counter() - started
    result = {"workers": int(count), "images": made.images, "seconds": round(seconds, 3)}
    result |= {"kills": int(kills) - len(killer.at), "images_per_s": round(made.images / seconds, 1)}
    if int(kills):
        _, alone = fake_run(folder / "alone", int(images), "folder", shard=50)
        run(plan, alone, FakeMaker(measure=fake_measure))
        result["same_rows_and_bytes"] = contents(place.folder) == contents(alone.folder)
    return result


def local_workers(count: int) -> Any:
    from dcdm_cli.workers.local import LocalTransport
    from tests.generation.fakes import open_fake

    return LocalTransport(partial(open_fake, seconds=RENDER_S), ["cpu"] * count, threads=1)


# The tiny base


def overhead(folder: Path, images: str, rounds: str) -> dict[str, Any]:
    """Seconds of rendering, of rendering and writing files, and of a run with plan, shards, journal and ledger."""
    from common import median_ratio

    from dcdm_cli.run.progress import Job

    maker = tiny_maker(folder)
    rows = tiny_plan(maker, int(images)).rows()
    render = lambda: deque(maker.render(rows, Job()), maxlen=0)  # noqa: E731
    render()  # warm
    times: dict[str, list[float]] = {"rendering": [], "bare_loop": [], "whole_run": []}
    for number in range(int(rounds)):
        times["rendering"].append(timed(render))
        times["bare_loop"].append(timed(partial(bare_loop, tiny_layout(folder / f"bare-{number}", maker), rows, maker)))
        times["whole_run"].append(timed(partial(whole_run, folder / f"run-{number}", len(rows), maker)))
    return {
        "images": len(rows),
        "batch": maker.batch_size,
        **{f"{name}_s": seconds for name, seconds in times.items()},
        "writing_share": round(1 - median_ratio(times["rendering"], times["bare_loop"]), 4),
        "overhead_share": round(median_ratio(times["whole_run"], times["bare_loop"]) - 1, 4),
    }


def tiny_maker(folder: Path, **settings: Any) -> Any:
    """The tiny base with an untrained adapter, which costs what a trained one does; the demo's settings, one draw."""
    import torch

    from dcdm_cli.generation.engine import open_engine
    from dcdm_cli.generation.render import EngineMaker
    from dcdm_cli.run.presets import PRESETS
    from dcdm_cli.run.settings import GenerateConfig
    from tests.generation.conftest import make_adapter

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    chosen = {**PRESETS["digits"]["generate"], "attempts": 1, "backend": "torch", **settings}
    return EngineMaker(open_engine(make_adapter(folder / "adapter"), GenerateConfig.model_validate(chosen), "cpu"))


def tiny_plan(maker: Any, images: int) -> Any:
    import numpy as np

    from dcdm_cli.generation.plan import make_plan
    from dcdm_cli.generation.targets import parse_target
    from tests.generation.fakes import inputs

    target, generator = parse_target("normal:0.5,0.1"), maker.facts.generator
    return make_plan(inputs(), np.full(3, images // 3), target, 0, generator, shard_size=SHARD)


def tiny_layout(folder: Path, maker: Any, shards: int = 1) -> Any:
    from dcdm_cli.generation.layout import Layout

    return Layout(folder, "folder", "png", maker.facts.class_names, shards)


def flat(folder: Path, images: str) -> dict[str, Any]:
    """Memory over a run of the tiny base in two steps per image, which take as much memory as ten."""
    maker, watch = tiny_maker(folder, steps=2), Watch()
    seconds = timed(lambda: whole_run(folder / "run", int(images), maker, watch.job))
    return {
        "images": int(images),
        "seconds": seconds,
        **watch.facts(),
        "peak_mib": peak_mib(),
    }


def bare_loop(layout: Any, rows: Any, maker: Any) -> None:
    """The same batches, encoder threads and files, and nothing else."""
    from dcdm_cli.files import write_bytes
    from dcdm_cli.generation.shards import Encoders, ShardTask, make_batches
    from dcdm_cli.run.progress import Job

    with Encoders() as encoders:
        task = ShardTask(0, tuple(rows), layout, maker.facts.generator)
        store = lambda entry, content: write_bytes(layout.folder / entry["path"], content, durable=False)  # noqa: E731
        for _ in make_batches(task, maker, encoders, Job(), store):
            pass


def whole_run(folder: Path, images: int, maker: Any, job: Any = None) -> None:
    plan = tiny_plan(maker, images)
    run(plan, tiny_layout(folder, maker, plan.shards), maker, job)


def prediction(folder: Path, images: str, finished: str) -> dict[str, Any]:
    """`dcdm generate --plan`, then `dcdm generate PLAN`, each in a process of its own, in a copy of a finished demo run
    without its images: calibrated, scored, with redraws."""
    from dcdm_cli.run.store import RunFolder

    run_folder = RunFolder(folder / "run")
    shutil.copytree(finished, run_folder.path, ignore=shutil.ignore_patterns("generated", "evaluation", "export"))
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}"}
    dcdm = [sys.executable, "-m", "dcdm_cli", "generate", "--run", str(run_folder.path), "--json"]
    plan = [*dcdm, "--plan", "--count", images]
    priced = json.loads(subprocess.run(plan, env=env, stdout=subprocess.PIPE, check=True).stdout)
    wall = timed(lambda: subprocess.run([*dcdm, priced["plan"]], env=env, stdout=subprocess.DEVNULL, check=True))
    record = json.loads((run_folder.path / "records" / "generate.json").read_text())
    return {
        "images": priced["images"],
        "predicted_s": priced["seconds"],
        "real_s": record["seconds"],
        "process_s": wall,
        "error": round(priced["seconds"] / record["seconds"] - 1, 4),
        "predicted_disk_bytes": priced["disk_bytes"],
        "disk_bytes": sum(p.stat().st_size for p in run_folder.generated.rglob("*") if p.is_file()),
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "plan_rows": plan_rows,
    "run_fake": run_fake,
    "scan_tars": scan_tars,
    "workers": workers,
    "overhead": overhead,
    "flat": flat,
    "prediction": prediction,
}


# What is run


def planning(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [part("plan_rows", rows // (50 if options.quick else 1)) for rows in (10_000, 100_000, 1_000_000)]


def images(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        part("run_fake", count, "webdataset") for count in (100, 1_000, *(() if options.quick else (10_000, 100_000)))
    ]


def formats(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [part("run_fake", 1_000 if options.quick else 10_000, format) for format in FORMATS]


def sources(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [part("scan_tars", count) for count in (1_000, *(() if options.quick else (10_000, 50_000)))]


def pools(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [part("workers", count, 300 if options.quick else 2_000, 0) for count in (1, 2, 4)]


def kills(options: argparse.Namespace) -> dict[str, Any]:
    images, count = (300, 3) if options.quick else (2_000, 20)
    disturbed, quiet = part("workers", 2, images, count), part("workers", 2, images, 0)
    return {
        **disturbed,
        "undisturbed_s": quiet["seconds"],
        "seconds_per_kill": round((disturbed["seconds"] - quiet["seconds"]) / max(1, disturbed["kills"]), 3),
    }


def tiny_base(options: argparse.Namespace) -> dict[str, Any]:
    return part("overhead", 33 if options.quick else 321, 1 if options.quick else 5)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    return part("flat", 330 if options.quick else 10_000)


def price(options: argparse.Namespace) -> list[dict[str, Any]]:
    """As many images as the demo makes, and more."""
    return [part("prediction", count, options.run.resolve()) for count in ([64] if options.quick else [200, 200, 800])]


STEPS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "planning": planning,
    "images": images,
    "formats": formats,
    "sources": sources,
    "pools": pools,
    "kills": kills,
    "tiny_base": tiny_base,
    "memory": memory,
    "price": price,
}

if __name__ == "__main__":
    main()
