"""The encoder's second lesson: what difficulty looks like in the generator's own images, as many as one likes.

Not from the paper. At the strength that keeps what the base knows, a few real images teach the encoder nothing. The
generator and the scorer make training data for control without end, and nothing real is memorised by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.errors import UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.stages.adapter import TrainingRows, train_adapter
from dcdm_cli.stages.prompts import without_prompts
from dcdm_cli.workers.ranks import Ranks

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

SEED = 900  # of the draws, beside the run's


def own_name(folder: Path) -> str:
    """Of the checkpoints and draws of this lesson, for an adapter folder."""
    return f"{folder.name}-own"


def learn_from_own_draws(session: Session, config: FinetuneConfig, folder: Path, job: Job) -> dict[str, Any]:
    """Replaces the adapter in `folder` by one whose encoder (with `own_trains` = all the LoRA too) learned from
    `own_draws` first draws and the scorer's difficulty of each. Returns counts, label agreement and losses.

    session: with the scales that images will be generated with. Raises UsageError without a scorer.
    """
    from dcdm_cli.training.loop import EarlierAdapter

    if Ranks.of_environment().world > 1:
        raise UsageError("own draws are learned by one process", "leave out --devices, or set --own-draws 0")
    draws = own_draws(session, config, folder, job)
    start = EarlierAdapter(folder, session.config.generate.lora_scale, train_lora=config.own_trains == "all")
    lesson = TrainingRows(draws, start=start, name=own_name(folder))
    # other views of a draw would have scores of their own, which nobody has measured; and requests are spread evenly,
    # so that there is nothing to balance
    steps = config.model_copy(update={"steps": config.own_steps, "views": 1, "hflip": False, "difficulty_balance": 0.0})
    results = train_adapter(session, steps, folder, job, lesson=lesson)
    difficulty = draws.column("difficulty")
    return {
        "images": len(draws),
        "difficulty_mean": round(float(difficulty.mean()), 4),
        "difficulty_std": round(float(difficulty.std()), 4),
        "label_agreement": round(float((draws.column("predicted") == draws.column("label")).mean()), 4),
        "losses": results["losses"],
    }


def own_draws(session: Session, config: FinetuneConfig, folder: Path, job: Job) -> Manifest:
    """First draws over the whole range of requests, scored; made once, and gone on with after a stop."""
    from dcdm_cli.generation.finished import read_generated
    from dcdm_cli.generation.plan import chosen_plan
    from dcdm_cli.generation.run import run_plan
    from dcdm_cli.stages.calibrate import probe_points
    from dcdm_cli.stages.probe import first_draws, make_measure, open_run_engine, plan_inputs

    measure = make_measure(session, job, check=False)  # all are learned from, whatever they show
    if measure is None:
        raise UsageError(
            "own draws need a scorer, and this run has none (scores from a column leave none)",
            "score with a classifier: dcdm score --method auto --force, or set --own-draws 0",
        )
    engine = first_draws(open_run_engine(session, folder, job, insist=False))  # export comes after fine-tuning
    inputs, ends = plan_inputs(without_prompts(session), calibrated=False), probe_points(session, 2)
    seed = session.config.seed + SEED
    targets = np.random.default_rng((seed, 19)).uniform(ends[0], ends[-1], config.own_draws)
    labels = np.arange(config.own_draws) % len(inputs.class_names)
    plan = chosen_plan(inputs, labels, targets, seed, engine.generator)
    # the plan's hash holds the generator's: draws of another adapter are not gone on with
    place = session.run.checkpoints / own_name(folder) / "draws" / plan.hash[:16]
    run_plan(plan, engine, place, job, measure)
    made = read_generated(place, made_by="dcdm finetune")
    return made.select(np.isfinite(made.column("difficulty")))
