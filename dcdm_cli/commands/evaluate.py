"""`dcdm evaluate`: adherence, quality, what the images are worth and what they cost; experiments, atlas, next plan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.errors import UsageError
from dcdm_cli.job import Job
from dcdm_cli.store import Outcome, Stage, StageRecord

if TYPE_CHECKING:
    from dcdm_cli.commands.checks import Evaluated

EXAMPLES = (
    "dcdm evaluate --run birds",
    "dcdm evaluate --run birds --arms real,upsampled,plain,easy,dcdm --seeds 8 --fresh-sets",
    "dcdm evaluate --run birds --experiment controls --seeds 5",
    "dcdm evaluate --run birds --artefacts --gpu-hour-price 2.5",
    "dcdm evaluate --run birds --next-plan",
    "dcdm evaluate --run birds --devices all",
    "dcdm evaluate --run birds --json | jq .adherence",
)
STAGES = ("score", "caption", "finetune", "calibrate", "export", "generate")
SECTIONS = ("evaluate", "judge", "downstream", "generate", "finetune")


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "evaluate", help=summary, sections=("evaluate", "scale"), examples=EXAMPLES)
    def evaluate(
        context: Context,
        experiment: Annotated[
            str | None, typer.Option(help="Run an experiment: a built-in name or a TOML file.", metavar="NAME|FILE")
        ] = None,
        artefacts: Annotated[
            bool, typer.Option("--artefacts", help="Look at finished images only: nothing is generated or compared.")
        ] = False,
        filter: Annotated[
            bool, typer.Option("--filter", help="List broken images among the generated ones; deletes nothing.")
        ] = False,
        atlas: Annotated[bool, typer.Option("--atlas", help="Write the difficulty atlas, atlas.html.")] = False,
        next_plan: Annotated[
            bool, typer.Option("--next-plan", help="Plan the next images from what the newest classifier finds hard.")
        ] = False,
        suite: Annotated[
            Path | None, typer.Option(help="Re-make tables and figures of the documents below DIR from its results.")
        ] = None,
    ) -> None:
        modes = {"--experiment": experiment, "--artefacts": artefacts, "--filter": filter, "--atlas": atlas}
        modes |= {"--next-plan": next_plan, "--suite": suite}
        chosen = [name for name, value in modes.items() if value]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} are different jobs", "run them one after the other")
        _run_mode(context, chosen[0] if chosen else "", experiment or "", suite)


def _run_mode(context: Context, mode: str, experiment: str, suite: Path | None) -> None:
    if mode == "--suite":
        from dcdm_cli.commands.suite import run_suite

        assert suite is not None
        run_suite(context, suite)
    elif mode == "--experiment":
        from dcdm_cli.commands.experiment import run_experiment, show_experiment

        show_experiment(context, *run_experiment(context, experiment))
    elif mode == "--next-plan":
        from dcdm_cli.commands.next_plan import run_next_plan, show_next_plan

        show_next_plan(context, run_next_plan(context))
    elif mode == "--atlas":
        from dcdm_cli.commands.atlas import run_atlas

        run_atlas(context)
    elif mode in ("--artefacts", "--filter"):
        from dcdm_cli.commands.artefacts import run_artefacts, run_filter

        (run_filter if mode == "--filter" else run_artefacts)(context)
    else:
        show_evaluation(context, run_evaluate(context))


def run_evaluate(context: Context) -> StageRecord:
    run = context.run
    run.create(after="finetune")
    with run.lock("dcdm evaluate"):
        records = stage_records(context)
        inputs = {name: record.id for name, record in records.items()}
        inputs["finetune"] = run.require("finetune").id
        stage = Stage("evaluate", evaluation_settings(context), inputs)
        record, done = run.run(stage, lambda: _work(context, records), force=context.force)
    if not done:
        context.console.note("evaluate: nothing changed, skipped (--force runs it again)")
    return record


def stage_records(context: Context) -> dict[str, StageRecord]:
    """Of the stages that made the images, as far as they were run."""
    found = {name: context.run.record(name) for name in STAGES}
    return {name: record for name, record in found.items() if record}


def evaluation_settings(context: Context) -> dict[str, Any]:
    settings = {name: getattr(context.config, name).model_dump(mode="json") for name in SECTIONS}
    return {**settings, "run_seed": context.config.seed}


def show_evaluation(context: Context, record: StageRecord) -> None:
    from dcdm_cli.reports.tables import summary_tables

    metrics, report = record.results, context.run.evaluation / "report.html"
    shown = [] if context.console.as_json or context.console.quiet else summary_tables(metrics)
    context.console.result(metrics, report, shown)


def _work(context: Context, records: Mapping[str, StageRecord]) -> Outcome:
    from dcdm_cli.commands.checks import checked_data
    from dcdm_cli.commands.judging import open_judge
    from dcdm_cli.commands.quality import generated_quality
    from dcdm_cli.commands.report import write_evaluation_report
    from dcdm_cli.commands.steering import measured_adherence
    from dcdm_cli.files import write_json

    run, job = context.run, context.job()
    data = checked_data(context)
    judge = open_judge(context, data.manifest, job)
    steered = measured_adherence(context, data, judge, job)
    seconds = {name: record.seconds for name, record in records.items()} | {"adherence": steered.seconds}
    clock = time.monotonic()
    downstream = _downstream(context, data, job)
    seconds["downstream"] = round(time.monotonic() - clock, 2)
    metrics = {"schema": 1, "seconds": seconds, "device": job.device, "adherence": steered.results}
    metrics |= {"downstream": downstream, "quality": generated_quality(context, data, judge, job)}
    metrics |= {"cost": the_bill(context, records, downstream), "warnings": list(data.warnings)}
    write_json(run.evaluation / "metrics.json", metrics)
    made = write_evaluation_report(context, data.manifest, metrics)
    return Outcome([run.evaluation / "metrics.json", *made], "", metrics, job.device)


def the_bill(
    context: Context, records: Mapping[str, StageRecord], downstream: Mapping[str, Any] | None
) -> dict[str, Any]:
    from dcdm_cli.evaluation.cost import bill
    from dcdm_cli.evaluation.downstream import OURS, REAL

    pairs = (downstream or {}).get("paired", ())
    gain = next((pair for pair in pairs if (pair["arm"], pair["against"]) == (OURS, REAL)), None)
    images = records["generate"].results.get("images", 0) if "generate" in records else 0
    return bill(records, images, gain, context.config.evaluate.gpu_hour_price)


def _downstream(context: Context, data: Evaluated, job: Job) -> dict[str, Any]:
    from dcdm_cli.commands.arms import PAIRS, make_arm, make_sets, named_arms
    from dcdm_cli.commands.checks import held_out_difficulty
    from dcdm_cli.commands.sets import GeneratedSets
    from dcdm_cli.evaluation.downstream import open_ledger, run_arms, seeds_of, trial_of
    from dcdm_cli.evaluation.experiments import Experiment

    config = context.config
    specs = named_arms(config.evaluate.arms)
    sets = GeneratedSets(context, Experiment(name="evaluate", arms=tuple(specs)), data.real, job)
    arms = [make_arm(spec, config.evaluate.synthetic_ratio, data.real, sets) for spec in specs]
    seeds = seeds_of(config.evaluate.seed + config.seed, config.evaluate.seeds)
    difficulty = held_out_difficulty(context, data.held_out, job)
    trial = trial_of(data.real, data.held_out, pairs=PAIRS, difficulty=difficulty)
    ledger = open_ledger(context.run.evaluation)
    make_sets([(arm, config.downstream) for arm in arms], trial, seeds, ledger)
    return run_arms(arms, trial, config.downstream, seeds, ledger=ledger, job=job, workers=config.evaluate.workers)
