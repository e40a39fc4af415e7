"""GPU-hours to reach a given accuracy: difficulty-controlled images against the plain-LoRA control, everything billed.

    python benchmarks/bench_gpu_hours.py --run bench-run    a run that bench_demo.py made, about 6 minutes on 2 cores

Both arms add more and more generated images to the same real ones and train the same classifier from scratch, with the
same seeds. Ours pays for scoring, captioning, fine-tuning, calibration and export, the control for captioning, its own
fine-tuning and export; both for generating and for training the classifier. Stage times are those that were recorded,
the rest is measured here. Without a GPU the bill is in hours of this CPU, and says so. Writes
results/bench_gpu_hours.json.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, WORK, write_result
from finished_run import FinishedRun, exported, recorded_seconds

from dcdm_cli.difficulty.calibration import load_calibration
from dcdm_cli.evaluation.downstream import Samples, arm_accuracy
from dcdm_cli.generation.engine import Engine, open_engine
from dcdm_cli.generation.plan import make_plan
from dcdm_cli.generation.run import run_plan
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.model.adapter import CALIBRATION_FILE
from dcdm_cli.run.progress import Job
from dcdm_cli.run.store import RunFolder

BEFORE = {  # what an arm needs before its first image
    "dcdm": ("score", "caption", "finetune", "calibrate", "export"),
    "plain": ("caption", "finetune", "export"),
}
OWN = ("finetune", "calibrate", "export")  # stages of the arm's own folder
PLACE = WORK / "gpu-hours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "bench-run")
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.5, 1.0, 2.0), help="generated per real image")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    run, device = FinishedRun.open(options.run), "cuda" if torch.cuda.is_available() else "cpu"
    shutil.rmtree(PLACE, ignore_errors=True)
    arms = {"dcdm": run.folder, "plain": run.copy_control(PLACE / "control")}
    real = train_real(run, device, options.seeds)
    points = [p for arm, folder in arms.items() for p in measure_arm(run, arm, folder, options, device)]
    unit = "GPU-hours" if device == "cuda" else f"hours of this CPU ({torch.get_num_threads()} threads); no GPU used"
    reached = hours_to_reach(points, real["accuracy"])
    result = {"unit": unit, "seeds": options.seeds, "real_only": real, "points": points, "hours_to_reach": reached}
    result = {"title": f"What an accuracy costs, in {unit}", "tables": sheets(real, points, reached), **result}
    headline = {"unit": unit, "real_only": real["accuracy"], "hours_to_reach": reached}
    write_result("bench_gpu_hours", {**result, "headline": headline}, headline)


def sheets(real: dict[str, Any], points: list[dict[str, Any]], reached: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        [p["arm"], p["ratio"], f"{p['accuracy']:.2%} ± {p['standard_error']:.2%}", p["seconds"]["generate"], p["hours"]]
        for p in points
    ]
    costs = [
        [f"{row['accuracy']:.2%}", *(row[arm] if row[arm] is not None else "not reached" for arm in BEFORE)]
        for row in reached
    ]
    return [
        {
            "title": f"Accuracy and the whole bill; real images alone {real['accuracy']:.2%}",
            "columns": ["arm", "generated per real", "accuracy, standard error", "s to generate", "hours, everything"],
            "rows": rows,
        },
        {"title": "Cheapest point that reaches an accuracy, hours", "columns": ["accuracy", *BEFORE], "rows": costs},
    ]


def train_real(run: FinishedRun, device: str, seeds: int) -> dict[str, Any]:
    """The classifier without generated images: the accuracy that has to be beaten."""
    started = time.monotonic()
    accuracies = [train(run, Samples([], np.zeros(0, np.int64)), seed, device) for seed in range(seeds)]
    seconds = (time.monotonic() - started) / seeds
    return {
        "accuracy": round(float(np.mean(accuracies)), 5),
        "accuracies": accuracies,
        "hours": round(seconds / 3600, 6),
    }


def measure_arm(
    run: FinishedRun, arm: str, folder: RunFolder, options: argparse.Namespace, device: str
) -> list[dict[str, Any]]:
    """One point per ratio: accuracy over seeds, each with its own generated set, and the bill of one set."""
    engine = open_engine(folder.adapter, run.config.generate, device, export=exported(folder))
    fixed = {name: recorded_seconds(folder if name in OWN else run.folder, name) for name in BEFORE[arm]}
    points = []
    for ratio in options.ratios:
        accuracies, generating, training = [], [], []
        for seed in range(options.seeds):
            started = time.monotonic()
            extra = generate(run, engine, arm, ratio, seed)
            generating.append(time.monotonic() - started)
            started = time.monotonic()
            accuracies.append(train(run, extra, seed, device))
            training.append(time.monotonic() - started)
        bill = {**fixed, "generate": float(np.mean(generating)), "classifier": float(np.mean(training))}
        points.append(
            {
                "arm": arm,
                "backend": engine.denoiser.name,
                "ratio": ratio,
                "accuracy": round(float(np.mean(accuracies)), 5),
                "standard_error": round(float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))), 5),
                "seconds": {name: round(value, 2) for name, value in bill.items()},
                "hours": round(sum(bill.values()) / 3600, 5),
            }
        )
        print(points[-1], flush=True)
    return points


def generate(run: FinishedRun, engine: Engine, arm: str, ratio: float, seed: int) -> Samples:
    """A fresh set to files, with the run's own target distribution; the control knows no difficulty."""
    config, train = run.config.generate, run.manifest.split("train")
    calibration = load_calibration(run.folder.adapter / CALIBRATION_FILE) if arm == "dcdm" else None
    target = parse_target(config.difficulty if arm == "dcdm" else "fixed:0")
    counts = np.maximum(1, np.round(train.class_counts() * ratio)).astype(int)
    plan = make_plan(run.plan_inputs(calibration), counts, target, 7000 + seed, engine.generator)
    folder = PLACE / f"{arm}-{ratio:g}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    measure = run.scorer.verdicts if arm == "dcdm" else None  # the control's images are never chosen among
    manifest = run_plan(plan, engine, folder, Job(), measure).manifest
    return Samples(manifest.paths(), manifest.column("label"))


def train(run: FinishedRun, extra: Samples, seed: int, device: str) -> float:
    parts = (run.manifest.split("train"), run.manifest.split("test"))
    real, test = (Samples(part.paths(), part.column("label")) for part in parts)
    return arm_accuracy(real + extra, test, run.config.downstream, len(run.manifest.class_names), seed, device)


def hours_to_reach(points: list[dict[str, Any]], real_only: float) -> list[dict[str, Any]]:
    """For accuracies from real only up to the best reached: the cheapest point of each arm that reaches it, or None."""
    best = max(point["accuracy"] for point in points)
    rows = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        wanted = real_only + share * (best - real_only)
        row: dict[str, Any] = {"accuracy": round(wanted, 5)}
        for arm in BEFORE:
            hours = [p["hours"] for p in points if p["arm"] == arm and p["accuracy"] >= wanted - 1e-9]
            row[arm] = min(hours, default=None)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
