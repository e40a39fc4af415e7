"""Does the rule of `finetune.strength = auto` pick the strength that is worth most? On validation images.

    python benchmarks/strength_rule.py --size 50 --state DIR [--seeds 10] [--checkpoints 20,60,...] [--scales 0.3,0.6,1]
    python benchmarks/strength_rule.py --data CIFAR10_DIR --state DIR ...  1,000 images of CIFAR-10 instead of digits

Every point of the grid, from too little fine-tuning to too much, is probed as fine-tuning does it, and a pool of images
is made with it; per seed a part of the pool joins the real images, a classifier learns from them and is tested on the
judge's images. The result has each measure's rank correlation with the mean accuracy over the points, with a 95 %
interval over seeds (bootstrap), and what the rule's own pick costs against the best point. Run again, it goes on where
it was. The test images are not touched. Not from the paper.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cifar10_run import Experiments
from common import RESULTS, provenance, save
from experiments_digits import Digits
from pieces import ROOT, Clock
from scipy.stats import spearmanr

from dcdm_cli.api.session import open_session
from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest, read_manifest
from dcdm_cli.evaluation.downstream import NOTHING, Arm, Samples, open_ledger, run_arms, seeds_of, trial_of
from dcdm_cli.evaluation.strength import Point
from dcdm_cli.files import hash_json, write_json
from dcdm_cli.generation.plan import make_plan
from dcdm_cli.generation.run import run_plan
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.model.packaged import SMALL_BASE
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session, with_settings
from dcdm_cli.stages.adapter import snapshot_folder
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.probe import make_measure, open_run_engine, plan_inputs
from dcdm_cli.stages.strength import fine_tune, grid

CLASSES, FIRST_SEED, DRAWS = 10, 5000, 2000
RULE = "hard and right (the rule)"
MEASURES = (
    "worth",
    "labels",
    "difficulty",
    "coverage",
    "density",
    "agreement",
    "copies",
    "correlation",
    "error",
    "low",
    "high",
)


@dataclass(frozen=True)
class Asked:
    """per_seed: generated images that join the real ones; pool: images made of a point, to draw them from."""

    seeds: int
    per_seed: int
    pool: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--state", type=Path, default=ROOT / "bench-run" / "strength")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--checkpoints", default="20,60,160,400")
    parser.add_argument("--scales", default="0.3,0.6,1.0")
    parser.add_argument("--guidance", default="1.5/3", help="text/difficulty, several with commas")
    parser.add_argument("--probes", type=int, default=100, help="probed images per point")
    parser.add_argument("--attempts", type=int, default=1)
    parser.add_argument("--pool", type=int, default=300, help="images made of each point")
    parser.add_argument("--per-seed", type=int, default=100, help="of them that join the real ones")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10's Parquet files")
    options = parser.parse_args()
    steps, scales = ([float(n) for n in text.split(",")] for text in (options.checkpoints, options.scales))
    pairs = [[float(n) for n in pair.split("/")] for pair in options.guidance.split(",")]
    state = options.state.absolute()
    run, about = _cifar10(state, options) if options.data else _digits(state, options)
    points = len(steps) * len(scales) * len(pairs)
    flags = {
        "finetune.strength": "auto", "finetune.steps": int(max(steps)), "generate.attempts": options.attempts,
        "strength.checkpoints": [int(step) for step in steps], "strength.lora_scales": scales,
        "strength.guidance": pairs, "strength.probe_budget": options.probes * points,
    }  # fmt: skip
    session = open_session(run, "finetune", flags, Console(), name="")
    asked = Asked(options.seeds, options.per_seed, options.pool)
    document = measured(session, asked)
    title = f"{about.title}: strength of fine-tuning and accuracy on validation images"
    facts = {"title": title, **provenance("python benchmarks/strength_rule.py")}
    save({**facts, **document, **shown(document)}, about.result, options.results)
    print_table(document)


class RealSet(NamedTuple):
    """title: in the result. result: its name."""

    title: str
    result: str


def _digits(state: Path, options: argparse.Namespace) -> tuple[Path, RealSet]:
    """A run that is scored and captioned."""
    digits = Digits(state, None, options.size, "full", options.results, Clock(None))
    state.mkdir(parents=True, exist_ok=True)
    for step in list(digits.steps([], None))[:3]:
        step.work()
    return digits.run, RealSet(f"Digits, {options.size} real images", f"digits_{options.size}_strength")


def _cifar10(state: Path, options: argparse.Namespace) -> tuple[Path, RealSet]:
    """The same for 1,000 images, with 4,000 others for validation, from the packaged base."""
    state.mkdir(parents=True, exist_ok=True)
    job = Experiments(options.data.absolute(), state, "cpu", options.results, Clock(None), SMALL_BASE)
    for step in job.first_steps("tune"):
        step.work()
    return state / "runs" / "tune", RealSet("CIFAR-10, 1,000 real images", "cifar10_small_strength")


def measured(session: Session, asked: Asked) -> dict[str, Any]:
    job, folder = open_job(session), session.run.path / "strength-adapter"
    record = session.run.path / "strength.json"
    strength = _probed(session, folder, job, record)
    points = grid(session, session.config.finetune)
    pools = [_pool(session, folder, point, asked.pool, job) for point in points]
    seeds = seeds_of(FIRST_SEED, asked.seeds)
    arms = _accuracies(session, points, pools, seeds, asked.per_seed, job)
    rows = [
        {**row, "name": _name(point), **_facts(pool), **arms[_name(point)]}
        for point, pool, row in zip(points, pools, strength["points"], strict=True)
    ]
    return {
        "real": arms["real"],
        "points": rows,
        "rules": rules(rows, seeds),
        "chosen": strength["chosen"],
        "seeds": seeds,
        "generated_per_seed": asked.per_seed,
        "settings": session.config.generate.model_dump(mode="json", include={"attempts", "tolerance", "difficulty"}),
    }


def _probed(session: Session, folder: Path, job: Job, record: Path) -> dict[str, Any]:
    key = hash_json([session.config.strength.model_dump(mode="json"), session.config.finetune.model_dump(mode="json")])
    known = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    if known.get("key") != key:
        known = {"key": key, **fine_tune(session, session.config.finetune, folder, job)["strength"]}
        write_json(record, known)
    return known


def _pool(session: Session, folder: Path, point: Point, count: int, job: Job) -> Manifest:
    """`count` images of the point, evenly over the classes, at the run's own target distribution."""
    place = session.run.path / "pools" / f"{_name(point)} x {session.config.generate.attempts}"
    if not (place / "samples.parquet").is_file():
        own = with_settings(session, generate=point.settings())
        adapter = snapshot_folder(session.run, folder) / f"step-{point.steps:08d}"
        engine = open_run_engine(own, adapter, job, insist=False)
        counts = np.full(CLASSES, count // CLASSES)
        target = parse_target(own.config.generate.difficulty)
        plan = make_plan(plan_inputs(own, calibrated=False), counts, target, DRAWS, engine.generator)
        run_plan(plan, engine, place, job, make_measure(own, job))
    return read_manifest(place / "samples.parquet")


def _name(point: Point) -> str:
    return f"{point.steps} steps, scale {point.lora_scale:g}, {point.text_guidance:g}-{point.difficulty_guidance:g}"


def _facts(pool: Manifest) -> dict[str, float]:
    difficulty = pool.column("measured_difficulty")
    agrees = (pool.column("predicted") == pool.column("label")).mean()
    return {"pool_difficulty": round(float(difficulty.mean()), 4), "pool_agreement": round(float(agrees), 4)}


def _accuracies(
    session: Session, points: Sequence[Point], pools: Sequence[Manifest], seeds: Sequence[int], count: int, job: Job
) -> dict[str, dict[str, Any]]:
    manifest = read_manifest(session.run.samples)
    trial = trial_of(manifest.split("train"), manifest.split("judge"))
    arms = [Arm("real", lambda seed: NOTHING, "")]
    for point, pool in zip(points, pools, strict=True):
        key = hash_json([pool.column("sample_id").tolist(), count])
        arms.append(Arm(_name(point), lambda seed, pool=pool: _part(pool, count, seed), key))
    ledger = open_ledger(session.run.evaluation, session.console.warn)
    made = run_arms(arms, trial, session.config.downstream, seeds, ledger=ledger, job=job)
    return {arm["name"]: {"accuracy": arm["accuracy"], "accuracy_mean": arm["accuracy_mean"]} for arm in made["arms"]}


def _part(pool: Manifest, count: int, seed: int) -> Samples:
    """`count` images of the pool, the same number of each class."""
    rng, labels = np.random.default_rng((seed, 31)), pool.column("label")
    rows = [rng.permutation(np.flatnonzero(labels == label))[: count // CLASSES] for label in range(CLASSES)]
    chosen = np.sort(np.concatenate(rows))
    paths = pool.paths()
    return Samples([paths[row] for row in chosen], labels[chosen].astype(np.int64))


def rules(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Per measure, `worth` being the rule: Spearman's rank correlation with mean accuracy over the points, and its 95 %
    interval when seeds are drawn again."""
    accuracy = np.array([row["accuracy"] for row in rows])  # [points, seeds]
    scores = {name: np.array([row[name] for row in rows]) for name in MEASURES}
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(seeds), len(seeds)) for _ in range(1000)]
    found = {}
    for name, score in scores.items():
        again = [spearmanr(score, accuracy[:, draw].mean(1))[0] for draw in draws]
        low, high = np.quantile(again, [0.025, 0.975])
        best, pick = accuracy.mean(1).max(), accuracy.mean(1)[int(score.argmax())]
        found[name] = {
            "rank_correlation": round(float(spearmanr(score, accuracy.mean(1))[0]), 3),
            "ci95": [round(float(low), 3), round(float(high), 3)],
            "below_best": round(float(best - pick), 4),
        }
    return found


def shown(document: dict[str, Any]) -> dict[str, Any]:
    """Tables and sentences of the documents."""
    base, rows = document["real"]["accuracy_mean"], document["points"]
    best = max(row["accuracy_mean"] for row in rows)
    chosen = rows[document["chosen"]]
    columns = ["strength", "accuracy", "to real alone", "hard and right", "difficulty", "labels", "copies", "covers"]
    measures = ("worth", "difficulty", "labels", "copies", "coverage")
    points = [
        [
            row["name"],
            f"{100 * row['accuracy_mean']:.2f} %",
            f"{100 * (row['accuracy_mean'] - base):+.2f}",
            *(f"{row[name]:.2f}" for name in measures),
        ]
        for row in sorted(rows, key=lambda row: -row["accuracy_mean"])
    ]
    ranked = sorted(document["rules"].items(), key=lambda item: -item[1]["rank_correlation"])
    rules = [
        [RULE if name == "worth" else name, f"{found['rank_correlation']:.2f}", interval_text(found["ci95"]),
         f"{100 * found['below_best']:.2f}"]
        for name, found in ranked
    ]  # fmt: skip
    seeds = len(document["seeds"])
    found = document["rules"]["worth"]
    return {
        "sentences": [
            f"Over {len(rows)} strengths the rule's rank correlation with accuracy on validation images is "
            f"{found['rank_correlation']:.2f}, 95 % interval {interval_text(found['ci95'])} (seeds drawn again).",
            f"It picks {chosen['name']}, {100 * (best - chosen['accuracy_mean']):.2f} points below the best.",
            f"Real images alone: {100 * base:.2f} %. {document['generated_per_seed']} generated images joined them, "
            f"first draws, one pool per strength, {seeds} seeds.",
        ],
        "tables": [
            {"title": "Strengths, best first", "columns": columns, "rows": points},
            {
                "title": "What else could have been the rule",
                "columns": ["measure", "rank correlation", "95 % interval", "its pick below the best, points"],
                "rows": rules,
            },
        ],
    }


def interval_text(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def print_table(document: dict[str, Any]) -> None:
    base = document["real"]["accuracy_mean"]
    print(f"real alone {base:.2%}")
    for row in sorted(document["points"], key=lambda row: -row["accuracy_mean"]):
        values = " ".join(f"{name} {row[name]:.2f}" for name in MEASURES)
        print(f"{row['accuracy_mean'] - base:+.2%} {row['name']}: {values}")
    for name, found in document["rules"].items():
        print(name, found)


if __name__ == "__main__":
    main()
