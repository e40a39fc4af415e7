"""Whether rejection sampling is cheaper when unpromising draws are given up before they are finished.

    python benchmarks/early_look.py --run RUN --name digits [--images 2000] [--difficulty normal:0.75,0.05]

After each step of the sampler the clean image that the network's prediction implies is decoded and measured, as the
finished one is. From first draws of the run's own generator the script says how well difficulty is foretold by then,
and what choosing would cost: rows with a target each are given draws of their class at random, and one that is further
from its target after step k than the tolerance and a margin is given up. Of all such rules (draws per row, k, margin)
the cheapest is named that misses targets by no more than choosing among finished draws does. Costs are the measured
seconds of steps and of looks. Writes results/early_look_<name>.json.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from looks import correlation

from dcdm_cli.api.session import open_session
from dcdm_cli.console import Console
from dcdm_cli.difficulty.verdict import Measure, Verdict, joined
from dcdm_cli.generation.budget import Budget
from dcdm_cli.generation.engine import Engine, draw
from dcdm_cli.generation.plan import PlanRow, make_plan
from dcdm_cli.generation.render import distance_of
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.model.latents import decode_latents
from dcdm_cli.run.session import Session
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.probe import make_measure, open_run_engine, plan_inputs

ROWS, SEED = 4000, 0  # simulated
DRAWS, MARGINS = (4, 6, 8, 12, 16), (0.0, 0.05, 0.1, 0.2)


class Watching:
    """A scheduler that keeps what the clean latents are taken for at each step."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.clean = scheduler, list[torch.Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def step(self, prediction: torch.Tensor, timestep: int, sample: torch.Tensor, **rest: Any) -> Any:
        alpha_bar = float(self.scheduler.alphas_cumprod[timestep])
        signal, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        velocity = self.scheduler.config["prediction_type"] == "v_prediction"
        clean = signal * sample - spread * prediction if velocity else (sample - spread * prediction) / signal
        self.clean.append(clean)
        return self.scheduler.step(prediction, timestep, sample, **rest)


@dataclass(frozen=True)
class Seen:
    """early: per step, what was found in the image that it implies; final: in the finished one. step_s, look_s: seconds
    of one image, for a step and for decoding and measuring it."""

    rows: list[PlanRow]
    early: list[Verdict]
    final: Verdict
    step_s: float
    look_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--difficulty", default="normal:0.75,0.05")
    asked = parser.parse_args()
    session = open_session(asked.run, "generate", {}, Console(quiet=True))
    seen = look(session, asked.images, asked.difficulty)
    write_result(f"early_look_{asked.name}", *told(seen, session, asked.name, asked.difficulty))


def look(session: Session, images: int, difficulty: str) -> Seen:
    job = open_job(session)
    measure, engine = make_measure(session, job), open_run_engine(session, session.run.adapter, job)
    assert measure is not None
    inputs = plan_inputs(session)
    counts = Budget(count=images).per_label(np.ones(len(inputs.class_names)))
    rows = list(make_plan(inputs, counts, parse_target(difficulty), SEED, engine.generator).rows())
    watching = Watching(engine.scheduler)
    vars(engine)["scheduler"] = watching
    early, final, seconds = list[list[Verdict]](), list[Verdict](), np.zeros(2)
    for start in range(0, len(rows), engine.batch_size):
        watching.clean.clear()
        some = rows[start : start + engine.batch_size]
        clock = time.monotonic()
        made = draw(engine, some, job)
        seconds[0] += time.monotonic() - clock
        final.append(measure(made, np.array([row.label for row in some])))
        clock = time.monotonic()
        early.append([looked(engine, measure, some, clean) for clean in watching.clean])
        seconds[1] += time.monotonic() - clock
    steps = len(early[0])
    look_s = seconds[1] / steps / len(rows)
    by_step = [joined([batch[step] for batch in early]) for step in range(steps)]
    # `draw` decodes once, which is a part of a look
    return Seen(rows, by_step, joined(final), (seconds[0] / len(rows) - look_s) / steps, look_s)


def looked(engine: Engine, measure: Measure, rows: list[PlanRow], clean: torch.Tensor) -> Verdict:
    images = decode_latents(engine.decode, clean[: len(rows)], engine.config.decode_batch)
    return measure(images, np.array([row.label for row in rows]))


@dataclass(frozen=True)
class Trials:
    """Simulated rows: which draws each may be given int [ROWS, most], and how far each draw is from the row's target,
    float [ROWS, most], by its finished image and by what it looks like after each step. miss: of difficulty alone."""

    final: np.ndarray
    early: list[np.ndarray]
    miss: np.ndarray


@dataclass(frozen=True)
class Cost:
    seconds: float
    miss: float
    within: float

    def shown(self) -> tuple[float, float, float]:
        return round(self.seconds, 4), round(self.miss, 3), round(self.within, 3)


def trials(seen: Seen, difficulty: str) -> Trials:
    random = np.random.default_rng(SEED)
    labels = np.array([row.label for row in seen.rows])
    asked = random.permutation(np.resize(np.unique(labels), ROWS))
    target = np.resize(np.array([row.target_difficulty for row in seen.rows]), ROWS)
    most = max(DRAWS)
    given = np.stack([random.choice(np.flatnonzero(labels == label), most, replace=False) for label in asked])
    wanted = np.repeat(target, most)

    def far(verdict: Verdict) -> np.ndarray:
        columns: list[Any] = [None if column is None else column[given.ravel()] for column in verdict]
        return distance_of(wanted, Verdict(*columns)).reshape(ROWS, most)

    miss = np.abs(seen.final.difficulty[given] - target[:, None])
    return Trials(far(seen.final), [far(verdict) for verdict in seen.early], miss)


def finished_only(tried: Trials, seen: Seen, tolerance: float, most: int) -> Cost:
    """What `render_close` does: finished draws until one is near enough, and the nearest of them."""
    final = tried.final[:, :most]
    used = np.where((final <= tolerance).any(1), (final <= tolerance).argmax(1) + 1, most)
    tried_so_far = np.where(np.arange(most) < used[:, None], final, np.inf)
    whole = len(seen.early) * seen.step_s + seen.look_s
    return _cost(tried, tried_so_far.argmin(1), used.mean() * whole, tolerance)


def given_up(tried: Trials, seen: Seen, tolerance: float, most: int, step: int, margin: float) -> Cost:
    """The same, of draws that are looked at after `step` and finished only if they are near enough by then; where none
    is, the nearest is made again and finished."""
    final, early = tried.final[:, :most], tried.early[step - 1][:, :most]
    goes_on = early <= tolerance + margin
    settles = goes_on & (final <= tolerance)
    begun = np.where(settles.any(1), settles.argmax(1) + 1, most)
    counted = np.arange(most) < begun[:, None]
    finished = goes_on & counted
    none = ~finished.any(1)
    best = np.where(none, early.argmin(1), np.where(finished, final, np.inf).argmin(1))
    part, rest = step * seen.step_s + seen.look_s, (len(seen.early) - step) * seen.step_s + seen.look_s
    seconds = begun.mean() * part + finished.sum(1).mean() * rest
    seconds += none.mean() * (len(seen.early) * seen.step_s + seen.look_s)
    return _cost(tried, best, seconds, tolerance)


def _cost(tried: Trials, best: np.ndarray, seconds: float, tolerance: float) -> Cost:
    rows = np.arange(ROWS)
    return Cost(
        float(seconds), float(tried.miss[rows, best].mean()), float((tried.final[rows, best] <= tolerance).mean())
    )


def told(seen: Seen, session: Session, name: str, difficulty: str) -> tuple[dict[str, Any], dict[str, Any]]:
    tolerance, tried, steps = session.config.generate.tolerance, trials(seen, difficulty), len(seen.early)
    foretold = [[k + 1, correlation(early.difficulty, seen.final.difficulty)] for k, early in enumerate(seen.early)]
    rows, saved = [], {}
    for most in (4, 8):
        now = finished_only(tried, seen, tolerance, most)
        every = [
            ((draws, step, margin), given_up(tried, seen, tolerance, draws, step, margin))
            for draws, step, margin in product(DRAWS, range(1, steps), MARGINS)
        ]
        good = [(rule, cost) for rule, cost in every if cost.miss <= now.miss]
        (draws, step, margin), best = min(good, key=lambda found: found[1].seconds)
        rows.append([f"{most} draws, all finished", "–", "–", *now.shown()])
        rows.append([f"{draws} draws, given up early", step, margin, *best.shown()])
        saved[str(most)] = 1 - best.seconds / now.seconds
    sentences = [
        f"After {k} of {steps} steps, difficulty is foretold with a rank correlation of {found:.2f}."
        for k, found in foretold
        if k in (max(1, steps // 10), max(1, round(0.3 * steps)), steps // 2)
    ]
    least, most_saved = min(saved.values()), max(saved.values())
    sentences.append(
        f"Giving up early saves {100 * least:.0f} to {100 * most_saved:.0f} % of the seconds at the same miss."
    )
    columns = ["rule", "after step", "margin", "seconds per image", "mean miss", "within tolerance"]
    tables = [
        {"title": "Choosing among draws", "columns": columns, "rows": rows},
        {"title": "Foretold", "columns": ["step", "rank correlation"], "rows": foretold},
    ]
    facts = {"images": len(seen.rows), "steps": steps, "tolerance": tolerance, "difficulty": difficulty}
    seconds = {"step_s": seen.step_s, "look_s": seen.look_s}
    found = {**facts, **seconds, "saved": saved, "foretold": dict(map(tuple, foretold))}
    return {"title": f"Early looks, {name}", **found, "sentences": sentences, "tables": tables}, {"saved": saved}


if __name__ == "__main__":
    main()
