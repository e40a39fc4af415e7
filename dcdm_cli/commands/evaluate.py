"""`dcdm evaluate`: adherence, quality, what the images are worth and what they cost; experiments, atlas, next plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands import completion
from dcdm_cli.commands.options import stage_command
from dcdm_cli.errors import UsageError
from dcdm_cli.run.session import Context
from dcdm_cli.run.store import ALL_SETS, StageRecord

EXAMPLES = (
    "dcdm evaluate --run birds",
    "dcdm evaluate --run birds --arms real,upsampled,plain,easy,dcdm --seeds 8 --fresh-sets",
    "dcdm evaluate --run birds --experiment controls --seeds 5",
    "dcdm evaluate --run birds --artefacts --gpu-hour-price 2.5",
    "dcdm evaluate --run birds --artefacts --name all",
    "dcdm evaluate --run birds --next-plan",
    "dcdm evaluate --run birds --devices all",
    "dcdm evaluate --run birds --json | jq .adherence",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "evaluate", help=summary, sections=SECTIONS["evaluate"], examples=EXAMPLES)
    def evaluate(
        context: Context,
        experiment: Annotated[
            str | None,
            typer.Option(
                help="Run an experiment: a built-in name or a TOML file.",
                metavar="NAME|FILE",
                autocompletion=completion.experiments,
            ),
        ] = None,
        artefacts: Annotated[
            bool, typer.Option("--artefacts", help="Look at finished images only: nothing is generated or compared.")
        ] = False,
        name: Annotated[
            str,
            typer.Option(
                help="Generated set to look at; with --artefacts, all = a table of all.",
                metavar="NAME",
                autocompletion=completion.set_names,
            ),
        ] = "",
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
        if name and chosen not in (["--artefacts"], ["--filter"]):
            raise UsageError("--name is for --artefacts and --filter", "dcdm evaluate --artefacts --name all")
        _run_mode(context, chosen[0] if chosen else "", experiment or "", suite)


def _run_mode(context: Context, mode: str, experiment: str, suite: Path | None) -> None:
    if mode == "--suite":
        from dcdm_cli.commands.suite import run_suite

        assert suite is not None
        run_suite(context, suite)
    elif mode == "--experiment":
        from dcdm_cli.stages.experiments.run import run_experiment, show_experiment

        show_experiment(context, *run_experiment(context, experiment))
    elif mode == "--next-plan":
        from dcdm_cli.stages.next_plan import run_next_plan, show_next_plan

        show_next_plan(context, run_next_plan(context))
    elif mode == "--atlas":
        from dcdm_cli.stages.atlas import run_atlas

        run_atlas(context)
    elif mode in ("--artefacts", "--filter"):
        from dcdm_cli.stages.artefacts import run_artefacts, run_compare, run_filter

        look = run_compare if context.run.images_name == ALL_SETS else run_artefacts
        (run_filter if mode == "--filter" else look)(context)
    else:
        show_evaluation(context, Run.of(context).evaluate())


def show_evaluation(context: Context, record: StageRecord) -> None:
    from dcdm_cli.reports.formatting import summary_sentences
    from dcdm_cli.reports.table import sentence, shown
    from dcdm_cli.reports.tables import saved_sheets, summary_sheets

    metrics, report = record.results, context.run.evaluation / "report.html"
    sheets = saved_sheets(summary_sheets(metrics), context.run.tables / "evaluation")
    words = [sentence(text) for text in summary_sentences(metrics)]
    context.console.result(metrics, report, [*shown(sheets), *words])
