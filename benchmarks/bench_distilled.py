"""One distilled network call against the guided ones: images/s, adherence, agreement, coverage, pictures, price.

    python benchmarks/bench_distilled.py        makes its run first, below bench-work; some minutes each on a core

On the digits preset and one thread, fine-tuned for the preset's own steps: `--strength auto`, with a run of its own
(--run), may leave guidance by difficulty out, and then two calls are replaced instead of three. Both adapters are
calibrated on their own and asked for the same targets with the same seeds, and draws are chosen among as the preset
does. Agreement is the scorer's, and the packaged digits classifier's, which knows the digits from elsewhere. Coverage
is of real images that fine-tuning did not see, in that classifier's features. Times are taken in turn. Writes
results/bench_distilled.json and docs/images/bench_distilled.png and ends with a JSON line.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, WORK, interleaved, median_ratio, write_result
from PIL import Image, ImageDraw

from dcdm_cli import Run
from dcdm_cli.api.session import open_session
from dcdm_cli.console import Console
from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.evaluation.adherence import adherence
from dcdm_cli.evaluation.fidelity import fidelity
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import grid_plan
from dcdm_cli.generation.render import render_close
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.stages.probe import Probed, make_measure, open_run_engine, plan_inputs, probe, usable_calibration
from dcdm_cli.stages.strength import open_space

GUIDED, DISTILLED = "guided calls", "distilled call"
TARGETS, SEED, SPEED_IMAGES = 5, 31_000, 64
FASTER, ERROR, AGREEMENT = 2.0, 0.01, 0.01
CELL, LABEL, SHOWN = 48, 110, 4
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Side:
    """One of the two, ready to be asked. made: its images of the targets' plan, in order."""

    session: Session
    engine: Engine
    probed: Probed
    made: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=WORK / "distilled-of-three")
    parser.add_argument("--strength", default="none", help="finetune.strength: none, or auto, as in the preset")
    parser.add_argument("--per-target", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = prepare(options.run, finetune={"strength": options.strength})
    sessions = {name: opened(options.run, name, **{"generate.backend": "torch"}) for name in (GUIDED, DISTILLED)}
    targets = shared_targets(list(sessions.values()))
    sides = {name: make(session, targets, options.per_target) for name, session in sessions.items()}
    table = {name: quality(side) for name, side in sides.items()}
    add_speed(table, sides, options.rounds)
    differences = compared(sides)
    price = repayment(run, table)
    save_picture(ROOT / "docs" / "images" / "bench_distilled.png", sides, targets)
    write_result("bench_distilled", document(table, differences, price, targets, options.per_target), price)


def prepare(folder: Path, **settings: Any) -> Run:
    """Scored, captioned, fine-tuned and distilled, each with its calibration; what is done stays. settings: other than
    the preset's, by section."""
    run = Run(folder, preset="digits", device="cpu", threads=1, quiet=True, **settings)
    run.score()
    run.caption()
    run.finetune()
    run.distill()
    return run


def opened(folder: Path, name: str, **flags: Any) -> Session:
    """The run as one of the two sides. flags: settings of its own, under dotted keys."""
    guidance = "distilled" if name == DISTILLED else "calls"
    flags = {"preset": "digits", "device": "cpu", "generate.guidance": guidance, **flags}
    return open_session(folder, "generate", flags, Console(quiet=True))


def shared_targets(sessions: list[Session]) -> list[float]:
    """Evenly over what both can reach, up to the cap."""
    ranges = [calibration.reachable for session in sessions if (calibration := usable_calibration(session))]
    assert len(ranges) == len(sessions), "both are calibrated by `prepare`"
    cap = sessions[0].config.generate.difficulty_cap
    low, high = max(low for low, _ in ranges), min(cap, *(high for _, high in ranges))
    return np.linspace(low, high, TARGETS).round(3).tolist()


def make(session: Session, targets: list[float], per_target: int) -> Side:
    engine, images = open_run_engine(session, session.run.adapter, Job()), []

    def keep(rows: Any, made: np.ndarray, difficulty: np.ndarray) -> None:
        images.append(made.copy())

    probed = probe(session, engine, targets, per_target, Job(), seed=SEED, calibrated=True, watch=keep)
    return Side(session, engine, probed, np.concatenate(images))


def quality(side: Side) -> dict[str, Any]:
    probed, shows = side.probed, seen_by_checker(side.session, side.made, side.probed.label)
    said = adherence(probed.target, probed.realised, probed.agrees)
    near = fidelity(*features(side))
    return {
        "error of bin means": said["mean_absolute_error"],
        "error of images": round(float(np.abs(probed.realised - probed.target).mean()), 4),
        "Spearman": said["spearman"],
        "agreement (scorer)": round(float(probed.agrees.mean()), 4),
        "agreement (checker)": round(float(shows.mean()), 4),
        "coverage": near["coverage"],
        "precision": near["precision"],
        "frechet": near["frechet"],
        "realised": [row["realised_mean"] for row in said["targets"]],
        "images": len(probed.target),
    }


def seen_by_checker(session: Session, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [N]: the packaged digits classifier sees the label."""
    measure = make_measure(session.with_settings(generate={"check": "digits"}), Job(), score=False)
    assert measure is not None
    shows = measure(images, labels).shows
    assert shows is not None
    return shows


def features(side: Side) -> tuple[np.ndarray, np.ndarray]:
    """(of the generated images, of as many real ones that fine-tuning did not see)."""
    embed = open_space(side.session, Job()).seen
    manifest = read_manifest(side.session.run.samples)
    unseen = [*manifest.split("judge").paths(), *manifest.split("test").paths()]
    return embed(side.made), embed(unseen[:: max(1, len(unseen) // len(side.made))])


def add_speed(table: dict[str, dict[str, Any]], sides: dict[str, Side], rounds: int) -> None:
    """Images/s in turn: single draws, and finished images with the preset's choice among draws, not written."""
    draws = interleaved({name: lambda s=side: drawn(s) for name, side in sides.items()}, rounds)
    whole = interleaved({name: lambda s=side: finished(s) for name, side in sides.items()}, rounds)
    for name, entry in table.items():
        entry["draws/s"] = round(SPEED_IMAGES / float(np.median(draws[name])), 2)
        entry["images/s"] = round(SPEED_IMAGES / float(np.median(whole[name])), 2)
        entry["times guided, draws"] = round(median_ratio(draws[GUIDED], draws[name]), 3)
        entry["times guided"] = round(median_ratio(whole[GUIDED], whole[name]), 3)


def rows_for_speed(side: Side) -> Any:
    plan = grid_plan(plan_inputs(side.session), [0.5], SPEED_IMAGES, SEED + 1, side.engine.generator)
    return plan.rows()


def drawn(side: Side) -> None:
    for _ in render(side.engine, rows_for_speed(side), Job()):
        pass


def finished(side: Side) -> None:
    for _ in render_close(side.engine, rows_for_speed(side), Job(), make_measure(side.session, Job())):
        pass


def compared(sides: dict[str, Side]) -> dict[str, tuple[float, float, float]]:
    """Distilled minus guided, images paired by target, class and seed, with the 95 % bootstrap interval."""
    ours, theirs = sides[DISTILLED], sides[GUIDED]
    error = [np.abs(side.probed.realised - side.probed.target) for side in (ours, theirs)]
    checked = [seen_by_checker(s.session, s.made, s.probed.label).astype(float) for s in (ours, theirs)]
    pairs = {"error of images": error[0] - error[1], "agreement (checker)": checked[0] - checked[1]}
    pairs["agreement (scorer)"] = ours.probed.agrees.astype(float) - theirs.probed.agrees
    return {name: interval(values) for name, values in pairs.items()}


def interval(values: np.ndarray) -> tuple[float, float, float]:
    drawn = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAP, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return tuple(round(float(value), 4) for value in (values.mean(), low, high))


def repayment(run: Run, table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What distilling took, and after how many finished images it has paid."""
    record = run.record("distill")
    assert record is not None
    calibrated = run.folder.with_distilled(True).record("calibrate")
    seconds = record.seconds + (calibrated.seconds if calibrated else 0.0)
    saved = 1 / table[GUIDED]["images/s"] - 1 / table[DISTILLED]["images/s"]
    return {
        "calls": record.results["calls"],
        "times_guided": table[DISTILLED]["times guided"],
        "training_seconds": record.seconds,
        "with_calibration_seconds": round(seconds, 2),
        "break_even_images": math.ceil(seconds / saved) if saved > 0 else None,
    }


def document(
    table: dict[str, dict[str, Any]],
    differences: dict[str, Any],
    price: dict[str, Any],
    targets: list[float],
    each: int,
) -> dict[str, Any]:
    calls = price["calls"]
    ours, theirs = table[DISTILLED], table[GUIDED]
    goals = {
        "images/s": (
            ours["times guided"] >= FASTER,
            f"{ours['times guided']:.2f} times the {calls} guided calls; goal {FASTER}",
        ),
        "adherence": (
            ours["error of bin means"] - theirs["error of bin means"] <= ERROR,
            f"mean error {ours['error of bin means']:.3f} against {theirs['error of bin means']:.3f}; goal at most "
            f"{ERROR} more",
        ),
    }
    for who in ("scorer", "checker"):
        name = f"agreement ({who})"
        goals[name] = (
            ours[name] - theirs[name] >= -AGREEMENT,
            f"{ours[name]:.1%} against {theirs[name]:.1%}; goal at most {100 * AGREEMENT:.0f} point less",
        )
    goals["coverage"] = (
        ours["coverage"] >= theirs["coverage"] - AGREEMENT,
        f"{ours['coverage']:.1%} against {theirs['coverage']:.1%}; goal at most {100 * AGREEMENT:.0f} point less",
    )
    said = [f"{name}: {text} {'met' if met else 'NOT met'}." for name, (met, text) in goals.items()]
    repaid = "never" if price["break_even_images"] is None else f"after {price['break_even_images']:,} images"
    said.append(
        f"Distilling took {price['training_seconds']:.0f} s, {price['with_calibration_seconds']:.0f} s with its "
        f"calibration: repaid {repaid}."
    )
    return {
        "title": f"One distilled call against {calls} guided ones: digits preset, one thread",
        "sentences": said,
        "tables": [sheet(table), differences_sheet(differences)],
        "targets": targets,
        "images_per_target": each,
        "sides": table,
        "differences": differences,
        "price": price,
        "goals": {name: met for name, (met, _) in goals.items()},
    }


def sheet(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    columns = [name for name in next(iter(table.values())) if name not in ("realised", "images")]
    return {
        "title": f"{next(iter(table.values()))['images']} images each, the same targets, classes and seeds",
        "columns": ["", *columns],
        "rows": [[name, *(entry[column] for column in columns)] for name, entry in table.items()],
    }


def differences_sheet(differences: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    rows = [[name, f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}"] for name, (mean, low, high) in differences.items()]
    return {"title": "Distilled minus guided, image by image", "columns": ["", "mean", "95 % interval"], "rows": rows}


def save_picture(file: Path, sides: dict[str, Side], targets: list[float]) -> None:
    """The same classes, targets and seeds, one line per side and class."""
    probed = next(iter(sides.values())).probed
    classes = sorted(set(probed.label.tolist()))
    width = LABEL + CELL * SHOWN * len(targets)
    sheet = Image.new("RGB", (width, CELL * (2 * len(classes) + 1)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, target in enumerate(targets):
        draw.text((LABEL + CELL * SHOWN * i, CELL // 3), f"target {target:.2f}", fill="black")
    for line, (label, name) in enumerate(((label, name) for label in classes for name in sides), 1):
        draw.text((4, CELL * line + CELL // 3), name, fill="black")
        chosen = [np.flatnonzero((probed.label == label) & np.isclose(probed.target, t))[:SHOWN] for t in targets]
        for column, indices in enumerate(chosen):
            for place, index in enumerate(indices):
                picture = Image.fromarray(sides[name].made[index]).resize(
                    (CELL - 2, CELL - 2), Image.Resampling.NEAREST
                )
                sheet.paste(picture, (LABEL + CELL * (SHOWN * column + place), CELL * line))
    file.parent.mkdir(exist_ok=True)
    sheet.quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    main()
