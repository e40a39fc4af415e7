"""`dcdm evaluate plan`: what the newest classifier finds hard, as a plan that `dcdm generate PLAN` executes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.files import hash_file, hash_json
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import all_others, fingerprints
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.devices import settle_generation
from dcdm_cli.stages.evaluation_data import look_at_sources
from dcdm_cli.stages.given import image_input, table_input
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.known import scorer_known
from dcdm_cli.stages.label_check import generator_files
from dcdm_cli.stages.plan import describe_model, images_per_label
from dcdm_cli.stages.probe import open_run_engine, plan_inputs

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.demand import Demand
    from dcdm_cli.evaluation.downstream import Samples
    from dcdm_cli.generation.plan import Plan

FILE = "next_plan.parquet"


@dataclass(frozen=True)
class Demanded:
    plan: Plan
    demand: Demand


def plan_demand(
    session: Session, real: Manifest, made: Samples, count: int, seed: int, generator: str, job: Job
) -> Demanded:
    """`count` images for the cells of class and difficulty that classifiers trained on `real` and `made` find hard."""
    from dcdm_cli.evaluation.demand import demand, newest_difficulty
    from dcdm_cli.evaluation.downstream import Samples
    from dcdm_cli.generation.plan import chosen_plan

    config, classes = session.config, len(real.class_names)
    labels = real.column("label").astype(np.int64)
    newest = newest_difficulty(
        Samples(real.paths(), labels),
        made,
        classes,
        config.downstream,
        config.evaluate.plan_folds,
        seed,
        job,
        session.run.cache / "features",
    )
    newest[real.column("suspect_label")] = np.nan  # hard because the label is wrong: not what is wanted
    asked = demand(newest, real.column("difficulty"), labels, classes, config.generate.difficulty_cap)
    wanted = asked.draw(count, np.random.default_rng((seed, 19)))
    return Demanded(chosen_plan(plan_inputs(session), *wanted, seed, generator), asked)


def run_next_plan(session: Session) -> StageRecord:
    session, run = settle_generation(session), session.run
    with run.lock("dcdm evaluate plan"):
        look_at_sources(session)
        record, done = run.run(next_plan_stage(session), lambda: _plan_what_is_hard(session), force=session.force)
    if not done:
        session.console.note("evaluate plan: nothing changed, skipped (--force runs it again)")
    return record


def next_plan_stage(session: Session) -> Stage:
    run, config = session.run, session.config
    generated = run.record("generate")
    inputs = {"finetune": run.require("finetune").id, "generate": generated.id if generated else ""}
    inputs |= image_input(session) | table_input(session)
    # this round's set is among the inputs by its record
    if earlier := [file for file in _rounds(run) if file.parent != run.generated]:
        inputs["rounds"] = hash_json([[file.parent.name, hash_file(file)] for file in earlier])
    sections = {"downstream": config.downstream, "generate": config.generate, "evaluate": config.evaluate}
    settings = {**fingerprints(sections), "run_seed": config.seed}
    reads = (*generator_files(session), run.generated / "samples.parquet")
    return Stage("next-plan", settings, inputs, all_others(sections), reads)


def _plan_what_is_hard(session: Session) -> Outcome:
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.evaluation.downstream import NOTHING, Samples
    from dcdm_cli.generation.finished import read_generated
    from dcdm_cli.generation.plan_file import write_plan

    run, config, job = session.run, session.config, open_job(session)
    real = read_manifest(run.samples).split("train")
    made = NOTHING
    for file in _rounds(run):
        images = read_generated(file.parent)
        made = made + Samples(images.paths(), images.column("label"))
    count = int(images_per_label(config.generate, real).sum())
    generator = open_run_engine(session, run.adapter, job).generator
    seed = config.generate.seed + config.seed + len(made)  # another round draws other images
    asked = plan_demand(session, real, made, count, seed, generator, job)
    target = run.evaluation / FILE
    # so that `check_plan` can name what differs by the time the plan is executed
    asked = replace(asked, plan=replace(asked.plan, made_for=describe_model(session)))
    write_plan(asked.plan, target)
    results = {**_results(asked, real, len(made)), "competence": scorer_known(run)}
    return Outcome([target], asked.plan.hash, results, job.device, listed=[run.generated, run.cache])


def _rounds(run: RunFolder) -> list[Path]:
    """The images of this round and of earlier ones, whose folder was renamed to generated-1, generated-2, ..."""
    return sorted(run.path.glob(f"{run.generated.name}*/samples.parquet"))


def _results(asked: Demanded, real: Manifest, known: int) -> dict[str, Any]:
    rows = [{"class": real.class_names[row.pop("label")], **row} for row in asked.demand.rows(len(asked.plan))]
    return {
        "plan": asked.plan.hash,
        "images": len(asked.plan),
        "unreachable_targets": asked.plan.unreachable,
        "known_images": known,
        "newest_difficulty": asked.demand.difficulty,
        "demand": sorted(rows, key=lambda row: -(row["easy"] + row["medium"] + row["hard"])),
    }
