"""What each way to generate faster does to images/s and to the images: realised difficulty, label agreement, pictures.

    python benchmarks/bench_speedups.py --run bench-run     a run that bench_demo.py made, about 15 minutes on 2 cores

Every variant makes the same images (captions, seeds, requested difficulties; nothing is calibrated, so that curves can
be compared). The exported graphs must give torch's curve: bin means that differ by at most 0.02. Realised difficulty is
the scorer's, agreement the judge's, who never saw the scorer's images. Writes results/bench_speedups.json and
docs/images/bench_speedups.png and ends with a JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, interleaved, median_ratio, write_result
from finished_run import FinishedRun, exported
from PIL import Image, ImageDraw
from scipy import stats

from dcdm_cli.generation.engine import Engine, open_engine, render, sampler_warnings
from dcdm_cli.generation.plan import Plan, grid_plan
from dcdm_cli.run.progress import Job

REQUESTED = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
SAME_CURVE = 0.02
BASELINE = "torch"
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {"backend": "torch"},
    "onnxruntime": {"backend": "onnxruntime"},
    "openvino": {"backend": "openvino"},
    "guidance 0.2-0.8": {"backend": "torch", "guidance_interval": (0.2, 0.8)},
    "guidance 0-0.5": {"backend": "torch", "guidance_interval": (0.0, 0.5)},
    "guidance 0.5-1": {"backend": "torch", "guidance_interval": (0.5, 1.0)},
    "dpmpp 20 steps": {"backend": "torch", "scheduler": "dpmpp", "steps": 20},
    "dpmpp 6 steps": {"backend": "torch", "scheduler": "dpmpp", "steps": 6},
    "unipc 10 steps": {"backend": "torch", "scheduler": "unipc", "steps": 10},
    "unipc 20 steps": {"backend": "torch", "scheduler": "unipc", "steps": 20},
    "unipc 10, no clipping": {"backend": "torch", "scheduler": "unipc", "steps": 10, "clip_range": None},
    "ddim 30 steps": {"backend": "torch", "scheduler": "ddim", "steps": 30},
}
CELL, LABEL, SHOWN = 48, 190, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "bench-run")
    parser.add_argument("--per-target", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    run = FinishedRun.open(options.run)
    engines = open_engines(run, options.variants)
    plan = grid_plan(run.plan_inputs(), REQUESTED, options.per_target, 4321, "speedups")
    images, table = {}, {}
    for name, engine in engines.items():
        images[name] = make(engine, plan)
        table[name] = {
            **VARIANTS[name],
            **quality(run, plan, images[name]),
            "warnings": sampler_warnings(engine.config),
        }
        print(name, table[name]["realised"], table[name]["agreement"], flush=True)
    add_comparison(table)
    add_speed(table, engines, plan, options.rounds)
    save_picture(ROOT / "docs" / "images" / "bench_speedups.png", plan, images)
    exported = {name: table[name]["largest_curve_difference"] for name in ("onnxruntime", "openvino") if name in table}
    headline = {"same_curve": exported, "goal": SAME_CURVE, "met": all(v <= SAME_CURVE for v in exported.values())}
    said = [
        f"{name}: bin means of realised difficulty differ from torch's by at most {value:.3f}; goal {SAME_CURVE} "
        f"{'met' if value <= SAME_CURVE else 'NOT met'}."
        for name, value in exported.items()
    ]
    document = {"title": "Faster, and what it does to the images", "sentences": said, "tables": [sheet(table)]}
    result = document | {
        "requested": REQUESTED,
        "images_per_point": options.per_target,
        "variants": table,
        "headline": headline,
    }
    write_result("bench_speedups", result, headline)


def sheet(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    columns = [
        "variant",
        "images/s",
        "times torch",
        "easiest to hardest realised",
        "range kept",
        "Spearman",
        "agreement",
    ]
    rows = [
        [name, entry["images_per_second"], entry["times_baseline"], f"{min(entry['realised']):.2f} to "
         f"{max(entry['realised']):.2f}", f"{entry['range_kept']:.0%}", entry["spearman"],
         f"{min(entry['agreement']):.2f} to {max(entry['agreement']):.2f}"]
        for name, entry in table.items()
    ]  # fmt: skip
    return {"title": "The same captions, seeds and requests, not calibrated", "columns": columns, "rows": rows}


def open_engines(run: FinishedRun, names: list[str]) -> dict[str, Engine]:
    """The baseline always, the others as far as they can run here."""
    export, engines = exported(run.folder), {}
    for name in dict.fromkeys([BASELINE, *names]):
        if name == "openvino" and importlib.util.find_spec("openvino") is None:
            continue
        settings = run.config.generate.model_copy(update=VARIANTS[name])
        engines[name] = open_engine(run.folder.adapter, settings, "cpu", export=export)
    return engines


def make(engine: Engine, plan: Plan) -> np.ndarray:
    return np.concatenate([batch for _, batch in render(engine, plan.rows(), Job())])


def quality(run: FinishedRun, plan: Plan, images: np.ndarray) -> dict[str, Any]:
    """Per requested difficulty: mean realised difficulty and the judge's agreement; rank correlation over all."""
    label, requested = (np.array(plan.table[name]) for name in ("label", "requested_difficulty"))
    realised = run.scorer.measure(images, label).difficulty
    agrees = run.judge_agrees(images, label)
    groups = [requested == value for value in np.unique(requested)]
    return {
        "realised": [round(float(realised[group].mean()), 4) for group in groups],
        "agreement": [round(float(agrees[group].mean()), 4) for group in groups],
        "spearman": round(float(stats.spearmanr(requested, realised)[0]), 4),
    }


def add_comparison(table: dict[str, dict[str, Any]]) -> None:
    """Against the baseline: the largest difference of bin means, and how much of its range of difficulty is left."""
    base = table[BASELINE]["realised"]
    for entry in table.values():
        differences = [abs(a - b) for a, b in zip(entry["realised"], base, strict=True)]
        entry["largest_curve_difference"] = round(max(differences), 4)
        entry["range_kept"] = round((entry["realised"][-1] - entry["realised"][0]) / (base[-1] - base[0]), 3)


def add_speed(table: dict[str, dict[str, Any]], engines: dict[str, Engine], plan: Plan, rounds: int) -> None:
    """Images/s without writing them, all variants in turn."""
    rows = plan.rows()[:: max(1, len(plan) // 128)]
    works = {name: lambda e=engine: list(render(e, rows, Job())) for name, engine in engines.items()}
    times = interleaved(works, rounds)
    for name, seconds in times.items():
        table[name]["images_per_second"] = round(len(rows) / float(np.median(seconds)), 2)
        table[name]["times_baseline"] = round(median_ratio(times[BASELINE], seconds), 3)


def save_picture(file: Path, plan: Plan, images: dict[str, np.ndarray]) -> None:
    """One line per variant: the same digits at each requested difficulty, from easy to hard."""
    requested = np.array(plan.table["requested_difficulty"])
    columns = [np.flatnonzero(requested == value)[:SHOWN] for value in np.unique(requested)]
    width = LABEL + CELL * SHOWN * len(columns)
    sheet = Image.new("RGB", (width, CELL * (len(images) + 1)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, value in enumerate(np.unique(requested)):
        draw.text((LABEL + CELL * SHOWN * i, CELL // 3), f"asked for {value:.2f}", fill="black")
    for line, (name, made) in enumerate(images.items(), 1):
        draw.text((4, CELL * line + CELL // 3), name, fill="black")
        for place, index in enumerate(np.concatenate(columns)):
            picture = Image.fromarray(made[index]).resize((CELL - 2, CELL - 2), Image.Resampling.NEAREST)
            sheet.paste(picture, (LABEL + CELL * place, CELL * line))
    file.parent.mkdir(exist_ok=True)
    sheet.quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    main()
