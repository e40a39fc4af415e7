"""`dcdm evaluate [JOB]`: adherence, quality, worth, cost; experiments, a check of finished images, atlas, next plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands import completion
from dcdm_cli.commands.options import stage_command
from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.session import Context
from dcdm_cli.run.store import ALL_SETS, StageRecord

RUN, EXPERIMENT, CHECK, ATLAS, PLAN, FILTER = JOBS = ("run", "experiment", "check", "atlas", "plan", "filter")
EXAMPLES = (
    "dcdm evaluate --run birds",
    "dcdm evaluate --run birds --arms real,upsampled,plain,easy,dcdm --seeds 8 --fresh-sets",
    "dcdm evaluate experiment controls --run birds --seeds 5",
    "dcdm evaluate check --run birds --gpu-hour-price 2.5",
    "dcdm evaluate check --run birds --name all",
    "dcdm evaluate plan --run birds",
    "dcdm evaluate --run birds --devices all",
    "dcdm evaluate --run birds --json | jq .adherence",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "evaluate", help=summary, sections=SECTIONS["evaluate"], examples=EXAMPLES)
    def evaluate(
        context: Context,
        job: Annotated[
            str | None,
            typer.Argument(
                help="run (unless given); experiment NAME|FILE; check: finished images only, nothing is generated or "
                "compared; atlas: classes by difficulty in pictures; plan: the next images, from what the newest "
                "classifier finds hard; filter: list broken images, delete nothing.",
                metavar="JOB",
                autocompletion=completion.choices(JOBS),
            ),
        ] = None,
        which: Annotated[
            str | None,
            typer.Argument(
                help="With experiment: a built-in name or a TOML file.",
                metavar="NAME|FILE",
                autocompletion=completion.experiments,
            ),
        ] = None,
        name: Annotated[
            str,
            typer.Option(
                help="Generated set to check or filter; with check, all = a table of all.",
                metavar="NAME",
                autocompletion=completion.set_names,
            ),
        ] = "",
        experiment: Annotated[str | None, typer.Option(hidden=True, autocompletion=completion.experiments)] = None,
        artefacts: Annotated[bool, typer.Option("--artefacts", hidden=True)] = False,
        filter: Annotated[bool, typer.Option("--filter", hidden=True)] = False,
        atlas: Annotated[bool, typer.Option("--atlas", hidden=True)] = False,
        next_plan: Annotated[bool, typer.Option("--next-plan", hidden=True)] = False,
    ) -> None:
        old = {"--experiment": experiment, "--artefacts": artefacts, "--filter": filter, "--atlas": atlas}
        do_job(context, (job, which), {**old, "--next-plan": next_plan}, name)


OLD_FLAGS = {"--experiment": EXPERIMENT, "--artefacts": CHECK, "--filter": FILTER, "--atlas": ATLAS}
OLD_FLAGS |= {"--next-plan": PLAN}


def chosen_job(
    context: Context, job: str | None, which: str | None, old: Mapping[str, str | bool | None]
) -> tuple[str, str]:
    """(job, name of its experiment or ""). old: the flags that named jobs up to 0.1, which work for one release more.

    Raises UsageError for several jobs, an unknown one, an experiment without a name and a name without one.
    """
    flags = [flag for flag, value in old.items() if value]
    if len(flags) + (job is not None) > 1:
        raise UsageError(
            f"{' and '.join([*filter(None, [job]), *flags])} are different jobs", "run one after the other"
        )
    if flags:
        job, which = OLD_FLAGS[flags[0]], str(old["--experiment"]) if old["--experiment"] else None
        context.console.warn(
            f"{flags[0]} goes with the next release: dcdm evaluate {' '.join(filter(None, (job, which)))}"
        )
    if job not in (None, *JOBS):
        raise UsageError(f"evaluate has no job {job!r}", nearest(str(job), list(JOBS)))
    if (job == EXPERIMENT) != (which is not None):
        wrong = "an experiment needs its name or file" if which is None else f"{job} takes no {which!r}"
        raise UsageError(wrong, "for example dcdm evaluate experiment controls")
    return job or RUN, which or ""


def do_job(
    context: Context, words: tuple[str | None, str | None], old: Mapping[str, str | bool | None], name: str = ""
) -> None:
    job, which = chosen_job(context, *words, old)
    if name and job not in (CHECK, FILTER):
        raise UsageError("--name is for check and filter", "dcdm evaluate check --name all")
    if job == EXPERIMENT:
        from dcdm_cli.stages.experiments.run import run_experiment, show_experiment

        show_experiment(context, *run_experiment(context, which))
    elif job == PLAN:
        from dcdm_cli.stages.next_plan import run_next_plan, show_next_plan

        show_next_plan(context, run_next_plan(context))
    elif job == ATLAS:
        from dcdm_cli.stages.atlas import run_atlas

        run_atlas(context)
    elif job in (CHECK, FILTER):
        from dcdm_cli.stages.artefacts import run_artefacts, run_compare, run_filter

        look = run_compare if context.run.images_name == ALL_SETS else run_artefacts
        (run_filter if job == FILTER else look)(context)
    else:
        show_evaluation(context, Run.of(context).evaluate())


def show_evaluation(context: Context, record: StageRecord) -> None:
    from dcdm_cli.stages.report import evaluation_lines

    report = context.run.evaluation / "report.html"
    context.console.result(record.results, report, evaluation_lines(context.run, record.results))
