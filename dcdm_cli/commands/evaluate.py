"""`dcdm evaluate [JOB]`: adherence, quality, worth, cost; experiments, a check of finished images, atlas, next plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from dcdm_cli.api import completion
from dcdm_cli.api.run import Run
from dcdm_cli.api.session import SECTIONS
from dcdm_cli.commands.jobs import chosen_job
from dcdm_cli.commands.options import stage_command
from dcdm_cli.errors import ExitCode, UsageError
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import ALL_SETS
from dcdm_cli.stages.evaluation_jobs import CHECK, FILTER, IMAGES, JOBS
from dcdm_cli.stages.told import Told, all_sets_told, image_sets_told, job_told

EXAMPLES = (
    "dcdm evaluate --run birds",
    "dcdm evaluate --run birds --arms real,upsampled,plain,easy,dcdm --seeds 8 --fresh-sets",
    "dcdm evaluate experiment controls --run birds --seeds 5",
    "dcdm evaluate check --run birds --gpu-hour-price 2.5",
    "dcdm evaluate check --run birds --name all",
    "dcdm evaluate plan --run birds",
    "dcdm evaluate images --images new/ --against photos/",
    "dcdm evaluate --run birds --devices all",
    "dcdm evaluate --run birds --json | jq .adherence",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "evaluate", help=summary, sections=SECTIONS["evaluate"], examples=EXAMPLES)
    def evaluate(
        session: Session,
        job: Annotated[
            str | None,
            typer.Argument(
                help="run (unless given); experiment NAME|FILE; check: finished images only, nothing is generated or "
                "compared; atlas: classes by difficulty in pictures; plan: the next images, from what the newest "
                "classifier finds hard; filter: list broken images, delete nothing; images: any two folders, "
                "without a run: copies, likeness, coverage.",
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
                help="Generated set to check or filter; with check, all = a table of all, by quality.",
                metavar="NAME",
                autocompletion=completion.set_names,
            ),
        ] = "",
        images: Annotated[Path | None, typer.Option(help="With images: the folder to look at.")] = None,
        against: Annotated[Path | None, typer.Option(help="With images: the folder of reference images.")] = None,
        experiment: Annotated[str | None, typer.Option(hidden=True, autocompletion=completion.experiments)] = None,
        artefacts: Annotated[bool, typer.Option("--artefacts", hidden=True)] = False,
        filter: Annotated[bool, typer.Option("--filter", hidden=True)] = False,
        atlas: Annotated[bool, typer.Option("--atlas", hidden=True)] = False,
        next_plan: Annotated[bool, typer.Option("--next-plan", hidden=True)] = False,
    ) -> None:
        old = {"--experiment": experiment, "--artefacts": artefacts, "--filter": filter, "--atlas": atlas}
        do_job(session, (job, which), {**old, "--next-plan": next_plan}, name, (images, against))


def do_job(
    session: Session,
    words: tuple[str | None, str | None],
    old: Mapping[str, str | bool | None],
    name: str = "",
    folders: tuple[Path | None, Path | None] = (None, None),
) -> None:
    if all(folders) and words == (None, None):
        words = (IMAGES, None)  # two folders say which job is meant
    job, which = chosen_job(session, *words, old)
    if name and job not in (CHECK, FILTER):
        told = "check --name all compares by quality; by accuracy: an experiment whose arms say set = NAME"
        raise UsageError("--name is for check and filter", f"dcdm evaluate {told} (docs/evaluate.md)")
    if any(folders) != (job == IMAGES) or (any(folders) and not all(folders)):
        raise UsageError("images compares two folders", "dcdm evaluate images --images FOLDER --against FOLDER")
    told = _told(session, job, which, folders)
    session.console.result(told.document, told.path, told.lines)
    if told.unread:
        raise typer.Exit(ExitCode.PARTIAL)


def _told(session: Session, job: str, which: str, folders: tuple[Path | None, Path | None]) -> Told:
    run, (images, against) = Run.of(session), folders
    if images and against:
        return image_sets_told(run.compare_images(images, against), images)
    if job == CHECK and session.run.images_name == ALL_SETS:
        return all_sets_told(session, run.compare_sets())
    return job_told(session, job, which, run.evaluate(job, which))
