"""`dcdm evaluate`: adherence, the label frontier and what the images are worth, as metrics.json and report.html."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.errors import UsageError
from dcdm_cli.job import Job
from dcdm_cli.store import Outcome, Stage, StageRecord

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.commands.probing import Probed
    from dcdm_cli.data.manifest import Manifest

EXAMPLES = (
    "dcdm evaluate --run birds",
    "dcdm evaluate --run birds --arms real,upsampled,plain,easy,dcdm --seeds 8 --fresh-sets",
    "dcdm evaluate --run birds --json | jq .adherence",
)
STAGES = ("score", "caption", "finetune", "calibrate", "generate")


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "evaluate", help=summary, sections=("evaluate",), examples=EXAMPLES)
    def evaluate(context: Context) -> None:
        show_evaluation(context, run_evaluate(context))


def run_evaluate(context: Context) -> StageRecord:
    run, config = context.run, context.config
    run.create(after="finetune")
    with run.lock("dcdm evaluate"):
        if not run.scorer.exists():
            raise UsageError(
                "evaluation needs a scorer, and this run's scores came from a column",
                "score with a classifier: dcdm score --method crossfit --force",
            )
        records = {name: run.record(name) for name in STAGES}
        inputs = {name: record.id for name, record in records.items() if record} | {
            "finetune": run.require("finetune").id
        }
        sections = ("evaluate", "judge", "downstream", "generate", "finetune")
        settings = {name: getattr(config, name).model_dump(mode="json") for name in sections}
        stage = Stage("evaluate", {**settings, "run_seed": config.seed}, inputs)
        record, done = run.run(stage, lambda: _work(context, records), force=context.force)
    if not done:
        context.console.note("evaluate: nothing changed, skipped (--force runs it again)")
    return record


def show_evaluation(context: Context, record: StageRecord) -> None:
    from dcdm_cli.reports.tables import summary_tables

    metrics, report = record.results, context.run.evaluation / "report.html"
    shown = [] if context.console.as_json or context.console.quiet else summary_tables(metrics)
    context.console.result(metrics, report, shown)


def _work(context: Context, records: Mapping[str, StageRecord | None]) -> Outcome:
    from dcdm_cli.commands.report import write_evaluation_report
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.files import write_json

    run, job = context.run, context.job()
    manifest = read_manifest(run.samples)
    _check_splits(manifest)
    seconds = {name: record.seconds for name, record in records.items() if record}
    clock = time.monotonic()
    adherence, probed = _adherence(context, manifest, job)
    seconds["adherence"] = round(time.monotonic() - clock, 2)
    clock = time.monotonic()
    downstream = _downstream(context, manifest, job)
    seconds["downstream"] = round(time.monotonic() - clock, 2)
    metrics = {"schema": 1, "seconds": seconds, "device": job.device, "adherence": adherence, "downstream": downstream}
    write_json(run.evaluation / "metrics.json", metrics)
    made = write_evaluation_report(context, manifest, probed, metrics)
    return Outcome([run.evaluation / "metrics.json", *made], "", metrics, job.device)


def _check_splits(manifest: Manifest) -> None:
    for split, purpose in {"judge": "to train the judge", "test": "that nothing was trained on"}.items():
        if not len(manifest.split(split)):
            raise UsageError(
                f"the source has no {split} images {purpose}",
                f"add a {split}/ folder (or a split column) to the source and run dcdm score again",
            )


def _adherence(context: Context, manifest: Manifest, job: Job) -> tuple[dict[str, Any], Probed]:
    """Fresh images at each reachable target, scored by the scorer, their labels checked by the judge."""
    import numpy as np

    from dcdm_cli.commands.probing import open_run_engine, probe, usable_calibration
    from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
    from dcdm_cli.difficulty.scorer import Scorer
    from dcdm_cli.evaluation.adherence import adherence, frontier

    config = context.config
    calibration = usable_calibration(context)
    low, high = calibration.reachable if calibration else (0.0, 1.0)
    targets = [t for t in config.evaluate.targets if low <= t <= high and t <= config.generate.difficulty_cap]
    if not targets:
        raise UsageError(
            f"no target of {list(config.evaluate.targets)} can be reached ({low:.2f} to {high:.2f})",
            "give others: --targets",
        )
    engine = open_run_engine(context, context.run.adapter, job)
    seed = config.evaluate.seed + config.seed
    probed = probe(context, engine, targets, config.evaluate.per_target, job, seed=seed, calibrated=True)

    judged, classes = manifest.split("judge"), len(manifest.class_names)
    judge = train_classifier(
        judged.paths(), judged.column("label"), classes, config.judge, seed, job.device, job.progress
    )

    def judge_agrees(images: Any, labels: np.ndarray) -> np.ndarray:
        return predict_logits(judge, images, config.judge, job.device).argmax(1) == labels

    test = manifest.split("test")
    labels = test.column("label")
    real = Scorer.load(context.run.scorer, job.device).measure(test.paths(), labels).difficulty
    generated_agrees = judge_agrees(probed.images, probed.label)
    results = adherence(probed.target, probed.realised, generated_agrees)
    results["reachable"] = [round(low, 4), round(high, 4)]
    results["targets_out_of_reach"] = [t for t in config.evaluate.targets if t not in targets]
    real_agrees = judge_agrees(test.paths(), labels)
    results["judge_accuracy"] = round(float(np.mean(real_agrees)), 4)
    results["frontier"] = frontier((real, real_agrees), (probed.realised, generated_agrees))
    return results, probed


def _downstream(context: Context, manifest: Manifest, job: Job) -> dict[str, Any]:
    from dcdm_cli.commands.arms import make_arms
    from dcdm_cli.evaluation.downstream import Ledger, Samples, run_arms

    config = context.config
    real, test = (Samples(m.paths(), m.column("label")) for m in (manifest.split("train"), manifest.split("test")))
    context.run.evaluation.mkdir(exist_ok=True)
    return run_arms(
        make_arms(context, manifest, job),
        real,
        test,
        config.downstream,
        [config.evaluate.seed + config.seed + i for i in range(config.evaluate.seeds)],
        classes=len(manifest.class_names),
        ledger=Ledger(context.run.evaluation / "downstream.jsonl"),
        job=job,
    )
