"""`dcdm evaluate experiment NAME|FILE.toml`: classifiers per arm, ratio and seed, or densities of difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.data import Evaluated, held_out_difficulty
from dcdm_cli.evaluation.experiments import ArmSpec, ClassifierSpec, Experiment, find_experiment
from dcdm_cli.files import safe_name, write_json
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import ClassifierConfig, changed
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.best_target import propose_target
from dcdm_cli.stages.caption import caption_input
from dcdm_cli.stages.devices import run_features, settle_generation
from dcdm_cli.stages.evaluate import evaluation_stage
from dcdm_cli.stages.evaluation_data import checked_data, look_at_sources
from dcdm_cli.stages.experiments.ahead import to_make
from dcdm_cli.stages.experiments.arms import make_arm, make_sets
from dcdm_cli.stages.experiments.generators import variant_session
from dcdm_cli.stages.experiments.named_sets import described, set_inputs
from dcdm_cli.stages.experiments.sets import GeneratedSets
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.known import scorer_known
from dcdm_cli.stages.label_check import prepare_check
from dcdm_cli.stages.report import ExperimentFiles

if TYPE_CHECKING:
    from dcdm_cli.evaluation.downstream import Arm


@dataclass(frozen=True)
class Cell:
    """One classifier at one ratio, with its arms in the experiment's order."""

    classifier: ClassifierSpec
    config: ClassifierConfig
    ratio: float
    arms: Sequence[Arm]


def run_experiment(session: Session, name: str) -> tuple[StageRecord, ExperimentFiles]:
    """name: a built-in experiment or a TOML file."""
    experiment = find_experiment(name)
    run = session.run
    run.create()
    session = _on_its_images(settle_generation(session), experiment)
    with run.lock(f"dcdm evaluate experiment {experiment.name}"):
        look_at_sources(session)
        files = files_of(session, experiment)
        stage = experiment_stage(session, experiment, files)
        record, done = run.run(stage, lambda: _run_arms(session, experiment, files), force=session.force)
    if not done:
        session.console.note(f"experiment {experiment.name}: nothing changed, skipped (--force runs it again)")
    return record, files


def _on_its_images(session: Session, experiment: Experiment) -> Session:
    """What the experiment says it is tested on, unless a flag says otherwise."""
    if experiment.holdout is None or "evaluate.holdout" in session.given:
        return session
    return session.with_settings(evaluate={"holdout": experiment.holdout})


def files_of(session: Session, experiment: Experiment) -> ExperimentFiles:
    return ExperimentFiles(session.run.evaluation / "experiments", safe_name(experiment.name, "experiment"))


def experiment_seeds(session: Session, experiment: Experiment) -> list[int]:
    from dcdm_cli.evaluation.downstream import seeds_of

    config = session.config
    given = "evaluate.seeds" in session.given
    count = config.evaluate.seeds if given or experiment.seeds is None else experiment.seeds
    return seeds_of(config.evaluate.seed + config.seed, count)


def train_arms(session: Session, experiment: Experiment, data: Evaluated, seeds: Sequence[int], job: Job) -> list[Any]:
    """Trains what the ledger lacks; returns the cells of the experiment's document.

    Images are made first, arm by arm, so that one generator at a time is in memory; then the classifiers, seed by seed.
    """
    from dcdm_cli.evaluation.downstream import open_ledger, run_arms, trial_of
    from dcdm_cli.evaluation.learners import check_learner

    sets = GeneratedSets(session, experiment, data.real, job)
    trial = trial_of(
        data.real,
        data.held_out,
        experiment.baseline,
        experiment.focus,
        pairs=experiment.pairs,
        difficulty=held_out_difficulty(session.run.scorer, data.held_out, run_features(session, job), job),
        cache=session.run.cache / "features",
    )
    cells, ledger = _cells(session, experiment, data, sets), open_ledger(session.run.evaluation, session.console.warn)
    for cell in cells:
        check_learner(cell.config)  # before images are made for it
    ahead = to_make(sets, experiment.arms, [*dict.fromkeys(cell.ratio for cell in cells)], seeds)
    # `to_make` counts for one kind of classifier, and cells may be of several
    count = len(cells) * len(experiment.arms) * len(seeds)
    session.console.note(f"experiment {experiment.name}: {replace(ahead, classifiers=count).told(session.run)}")
    by_arm = [(cell.arms[position], cell.config) for position in range(len(experiment.arms)) for cell in cells]
    make_sets(by_arm, trial, sets.by_adapter(seeds), ledger)
    documents = []
    for number, cell in enumerate(cells):
        session.console.note(
            f"classifiers: {cell.classifier.name}, ratio {cell.ratio:g} ({number + 1} of {len(cells)})"
        )
        made = run_arms(
            cell.arms, trial, cell.config, seeds, ledger=ledger, job=job, workers=session.config.evaluate.workers
        )
        for spec, arm in zip(experiment.arms, made["arms"], strict=True):
            arm |= _about(spec, spec.ratio or cell.ratio, sets, seeds)
        documents.append({**made, "classifier_name": cell.classifier.name, "ratio": cell.ratio})
    return documents


def _run_arms(session: Session, experiment: Experiment, files: ExperimentFiles) -> Outcome:
    from dcdm_cli.stages.experiments.adherence import adherence_document
    from dcdm_cli.stages.report import how_made, write_experiment_report

    job = open_job(session)
    data = checked_data(session)
    prepare_check(session, job)  # before anything is made: what is wrong with the check is said at once
    head = {
        "schema": 1,
        "experiment": experiment.name,
        "about": experiment.about,
        "kind": experiment.kind,
        "axis": experiment.axis,
        "tested_on": session.config.evaluate.holdout,
        "device": job.device,
        "competence": scorer_known(session.run),
        "warnings": list(data.warnings),
    }
    if experiment.kind == "adherence":
        body = adherence_document(session, experiment, data, job)
    else:
        seeds = experiment_seeds(session, experiment)
        cells = train_arms(session, experiment, data, seeds, job)
        body = {
            "seeds": seeds,
            "cells": cells,
            "preparation_seconds": _preparation(session),
            **_sweep(session, experiment, cells),
            **_best(session, experiment, cells),
        }
    document = {**head, **body}
    write_json(files.document, document)
    made = write_experiment_report(files, document, how_made())
    return Outcome([files.document, *made], "", document, job.device)


def experiment_stage(session: Session, experiment: Experiment, files: ExperimentFiles) -> Stage:
    found = {name: session.run.record(name) for name in ("calibrate",)}
    inputs = {"score": session.run.require("score").id, **caption_input(session.run)} | session.run.adapter_ids()
    inputs |= {name: record.id for name, record in found.items() if record}
    inputs |= set_inputs(session.run, experiment)
    return evaluation_stage(session, f"evaluate-{files.name}", inputs, experiment=described(experiment))


def _cells(session: Session, experiment: Experiment, data: Evaluated, sets: GeneratedSets) -> list[Cell]:
    config = session.config
    side = config.downstream.image_size
    fitting = [spec for spec in experiment.classifiers if spec.sides[0] <= side <= spec.sides[1]]
    if not fitting:
        raise UsageError(
            f"experiment {experiment.name} has no classifier for images of {side} pixels",
            "add one whose sides include it, or change downstream.image_size",
        )
    ratios = experiment.ratios or (config.evaluate.synthetic_ratio,)
    return [
        Cell(
            spec,
            changed(config.downstream, spec.settings, f"classifier {spec.name!r}"),
            ratio,
            [make_arm(arm, ratio, data.real, sets) for arm in experiment.arms],
        )
        for spec in fitting
        for ratio in ratios
    ]


def _about(spec: ArmSpec, ratio: float, sets: GeneratedSets, seeds: Sequence[int]) -> dict[str, Any]:
    """Where the arm's images come from, and what the scorer finds in them on average over the seeds."""
    from dcdm_cli.evaluation.cost import hours_of

    about: dict[str, Any] = {
        "source": spec.source,
        "adapter": spec.adapter,
        "difficulty": None,
        "augmented": spec.augmented,
    }
    if spec.source != "generated":
        return about
    planned = f"plan, {spec.rounds} rounds" if spec.rounds else spec.difficulty or sets.difficulty
    about["difficulty"] = f"of set {spec.set}" if spec.set else planned
    about |= {"set": spec.set} if spec.set else {}
    facts = [facts for facts in (sets.facts(spec, ratio, seed) for seed in seeds) if facts]
    for name in ("realised_mean", "realised_std", "label_agreement", "label_checked", "seconds"):
        known = [row[name] for row in facts if row[name] is not None]
        about[f"set_{name}"] = round(sum(known) / len(known), 4) if known else None
    if about["set_seconds"] is not None:
        about["set_hours"], about["set_unit"] = hours_of(about["set_seconds"], sets.job.device)
    return about


def _preparation(session: Session) -> dict[str, float]:
    """Seconds that ours needs before the first image, whatever their number."""
    records = {name: session.run.record(name) for name in ("score", "caption", "finetune", "calibrate", "export")}
    return {name: record.seconds for name, record in records.items() if record}


def _before(session: Session, experiment: Experiment, name: str) -> float | None:
    """Seconds that an arm of a generator needs before its first image; None = not known."""
    arm = next(arm for arm in experiment.arms if arm.name == name)
    spec = experiment.adapter(arm.adapter)
    own = variant_session(session, arm.adapter, spec).run
    finetune, caption = own.record("finetune") if spec.retrains else None, session.run.record("caption")
    if not finetune:
        return None
    export = own.record("export")
    # no scores and no calibration: what plain LoRA needs is captions and fine-tuning
    return round((caption.seconds if caption else 0) + finetune.seconds + (export.seconds if export else 0), 2)


def _best(session: Session, experiment: Experiment, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For sweeps over difficulty: what was worth most; on validation images it becomes what `best` means."""
    from dcdm_cli.evaluation.target import best_of_cell

    if experiment.axis != "difficulty":
        return {}
    found = [best_of_cell(cell, experiment.baseline) for cell in cells]
    best = [each.document() for each in found if each is not None]
    # never from test images: what is chosen on them would be flattered by them
    if session.config.evaluate.holdout == "validation":
        propose_target(session, experiment.name, best)
    return {"best": best}


def _sweep(session: Session, experiment: Experiment, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For ratio sweeps: what ours needs to reach each control's best."""
    from dcdm_cli.evaluation.crossing import CurvePoint, crossing

    if experiment.axis != "ratio":
        return {}

    def points(name: str) -> list[CurvePoint]:
        rows = [(cell["ratio"], arm) for cell in cells for arm in cell["arms"] if arm["name"] == name]
        return [
            CurvePoint(ratio, arm["synthetic_images"], arm["accuracy"], arm.get("set_seconds")) for ratio, arm in rows
        ]

    ours = points(experiment.focus)
    spent = round(sum(_preparation(session).values()), 2)
    return {
        "crossings": {
            control: crossing(points(control), ours, (_before(session, experiment, control), spent))
            for control in experiment.controls
            if points(control) and ours
        }
    }
