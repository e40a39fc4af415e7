"""Measures adherence, label agreement and what the images are worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import IMAGES, all_others, fingerprints
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import Config
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.devices import run_features, settle_generation
from dcdm_cli.stages.evaluation_data import checked_data, look_at_sources
from dcdm_cli.stages.first_look import first_look_sentences
from dcdm_cli.stages.given import image_input
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.label_check import check_files, generator_files, prepare_check
from dcdm_cli.stages.networks import check_compared_by

if TYPE_CHECKING:
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.stages.experiments.ahead import ToMake
    from dcdm_cli.stages.experiments.sets import GeneratedSets


PARTS = ("judge", "agreement", "adherence")  # stages that are recorded on the way
STAGES = ("score", "caption", "finetune", "distill", "calibrate", "export", "generate")


def run_evaluate(session: Session) -> StageRecord:
    run = session.run
    run.create(after="finetune")
    session = settle_generation(session)
    with run.lock("dcdm evaluate"):
        look_at_sources(session)
        records = stage_records(session)
        work = lambda: _measure_all(session, records)  # noqa: E731
        record, done = run.run(evaluate_stage(session), work, force=session.force, intact=lambda: _is_intact(session))
    if not done:
        session.console.note("evaluate: nothing changed, skipped (--force runs it again)")
    return record


def _is_intact(session: Session) -> bool:
    """False when a file of what it is made of is not as it was left: only that is made again, the rest is found."""
    run = session.run
    for record in filter(None, map(run.record, PARTS)):
        for file, said in run.changes(record):
            session.console.note(f"{file} {said}: what was measured with it is made again")
            return False
    return True


def stage_records(session: Session) -> dict[str, StageRecord]:
    """Of the stages that made the images, as far as they were run."""
    found = {name: session.run.record(name) for name in STAGES if name != "distill" or session.run.distilled}
    return {name: record for name, record in found.items() if record}


def evaluate_stage(session: Session) -> Stage:
    inputs = {name: record.id for name, record in stage_records(session).items()}
    inputs |= session.run.adapter_ids()  # stops where a distilled adapter is older than its teacher
    return evaluation_stage(session, "evaluate", inputs)


def evaluation_stage(session: Session, name: str, inputs: Mapping[str, str], **more: Any) -> Stage:
    """A stage that compares images, its own among them: how these are made counts, not how many the run made. more:
    what it depends on besides."""
    config = session.config
    compared = {"evaluate": config.evaluate, "judge": config.judge, "downstream": config.downstream}
    compared["finetune"] = config.finetune  # arms with generators of their own are fine-tuned by these
    made = {"generate": config.generate}
    settings = {**fingerprints(compared), **fingerprints(made, *IMAGES), "run_seed": config.seed, **more}
    uncounted = {**all_others(compared), **all_others(made, *IMAGES)}
    reads = [*generator_files(session), *([session.run.generated / "samples.parquet"] if "generate" in inputs else [])]
    return Stage(name, settings, {**inputs, **image_input(session)}, uncounted, tuple(reads))


def _measure_all(session: Session, records: Mapping[str, StageRecord]) -> Outcome:
    from dcdm_cli.files import write_json
    from dcdm_cli.stages.adherence import measured_adherence
    from dcdm_cli.stages.agreement import scorer_and_judge
    from dcdm_cli.stages.judge import judge_said, open_judge
    from dcdm_cli.stages.quality import generated_quality
    from dcdm_cli.stages.report import write_evaluation_report

    run, job = session.run, open_job(session)
    data = judge_said(session, checked_data(session))
    session.console.note(f"evaluate: {whole_evaluation(session, data, job).told(run)}")
    prepare_check(session, job)  # before the judge: what is wrong with it is said at once
    check_compared_by(session)
    judge = open_judge(session, data.manifest, job)
    known = scorer_and_judge(session, data, judge, job)
    steered = measured_adherence(session, data, judge, job)
    seconds = {name: record.seconds for name, record in records.items()} | {"adherence": steered.seconds}
    warnings = [*data.warnings, *head_warnings(session.config)]
    # `checked_data` has said those of the data
    for warning in warnings[len(data.warnings) :]:
        session.console.warn(warning)
    clock = time.monotonic()
    downstream = _downstream(session, data, job)
    seconds["downstream"] = round(time.monotonic() - clock, 2)
    metrics = {"schema": 1, "seconds": seconds, "device": job.device, "adherence": steered.results}
    metrics |= {"agreement": known["agreement"]}
    metrics["competence"] = {**known["competence"], "downstream": downstream["competence"]}
    metrics |= {"downstream": downstream, "quality": generated_quality(session, data, judge, job)}
    metrics |= {"cost": the_bill(session, records, downstream), "warnings": warnings}
    metrics |= {"first_look": about} if (about := first_look_sentences(session.config)) else {}
    write_json(run.evaluation / "metrics.json", metrics)
    made = write_evaluation_report(session, data.manifest, metrics)
    outputs = [run.evaluation / "metrics.json", *made]
    return Outcome(
        outputs, "", metrics, job.device, [*check_files(session)], [run.evaluation, run.generated, run.cache]
    )


def the_bill(
    session: Session, records: Mapping[str, StageRecord], downstream: Mapping[str, Any] | None
) -> dict[str, Any]:
    from dcdm_cli.evaluation.cost import bill
    from dcdm_cli.evaluation.downstream import OURS, REAL

    pairs = (downstream or {}).get("paired", ())
    gain = next((pair for pair in pairs if (pair["arm"], pair["against"]) == (OURS, REAL)), None)
    images = records["generate"].results.get("images", 0) if "generate" in records else 0
    return bill(records, images, gain, session.config.evaluate.gpu_hour_price)


def head_warnings(config: Config) -> list[str]:
    """What several seeds do not tell of arms that are compared by heads on features."""
    from dcdm_cli.evaluation.learners import on_features

    if config.evaluate.seeds == 1 or on_features(config.downstream) is None:
        return []
    return [
        "a head on features comes out the same for every seed: intervals and p hold at most the spread between "
        "generated sets (--fresh-sets), and none of the chance in which images were tested; --seeds 1 says as much"
    ]


def foretold(session: Session, classifiers: int) -> str:
    """What the comparison of arms will do, and for how long where the judge, trained alike, has been timed."""
    from dcdm_cli.evaluation.learners import learner_name, on_features
    from dcdm_cli.pace import estimated

    config, judge = session.config, session.run.record("judge")
    ours = config.downstream
    if on_features(ours):
        return f"downstream: {classifiers} classifiers ({learner_name(ours)}), a matter of seconds each"
    text = f"downstream: {classifiers} classifiers ({ours.model}, {ours.image_size} px, {ours.steps:,} steps each)"
    alike = judge is not None and all(
        judge.config.get(name) == getattr(ours, name) for name in ("model", "image_size", "batch_size", "model_args")
    )
    if judge is None or not alike:
        return text
    seconds = judge.seconds / judge.config["steps"] * ours.steps * classifiers / config.evaluate.workers
    return f"{text}; as the judge went, about {estimated(seconds)} where none is finished yet"


def whole_evaluation(session: Session, data: Evaluated, job: Job) -> ToMake:
    """What there is to make, as far as it is not there yet. Raises UsageError where no target can be reached."""
    from dcdm_cli.evaluation.downstream import seeds_of
    from dcdm_cli.stages.adherence import adherence_stage, reachable_targets
    from dcdm_cli.stages.experiments.ahead import to_make

    config = session.config.evaluate
    known = not session.force and session.run.is_fresh(adherence_stage(session))
    probes = 0 if known else len(reachable_targets(session)[1]) * config.per_target
    sets = _compared_sets(session, data, job)
    seeds = seeds_of(config.seed + session.config.seed, config.seeds)
    return replace(to_make(sets, sets.experiment.arms, [config.synthetic_ratio], seeds), probes=probes)


def _compared_sets(session: Session, data: Evaluated, job: Job) -> GeneratedSets:
    from dcdm_cli.evaluation.experiments import Experiment
    from dcdm_cli.stages.experiments.arms import named_arms
    from dcdm_cli.stages.experiments.sets import GeneratedSets

    specs = named_arms(session.config.evaluate.arms)
    return GeneratedSets(session, Experiment(name="evaluate", arms=tuple(specs)), data.real, job)


def _downstream(session: Session, data: Evaluated, job: Job) -> dict[str, Any]:
    from dcdm_cli.evaluation.data import held_out_difficulty
    from dcdm_cli.evaluation.downstream import open_ledger, run_arms, seeds_of, trial_of
    from dcdm_cli.stages.experiments.arms import PAIRS, make_arm, make_sets

    config, sets = session.config, _compared_sets(session, data, job)
    specs = sets.experiment.arms
    arms = [make_arm(spec, config.evaluate.synthetic_ratio, data.real, sets) for spec in specs]
    seeds = seeds_of(config.evaluate.seed + config.seed, config.evaluate.seeds)
    session.console.note(foretold(session, len(arms) * len(seeds)))
    # tells the harder half of the test images; the scorer has seen none of them
    difficulty = held_out_difficulty(session.run.scorer, data.held_out, run_features(session, job), job)
    cache = session.run.cache / "features"
    trial = trial_of(data.real, data.held_out, pairs=PAIRS, difficulty=difficulty, cache=cache)
    ledger = open_ledger(session.run.evaluation, session.console.warn)
    # first: a generator is opened once for all seeds, while classifiers go seed by seed
    make_sets([(arm, config.downstream) for arm in arms], trial, seeds, ledger)
    return run_arms(arms, trial, config.downstream, seeds, ledger=ledger, job=job, workers=config.evaluate.workers)
