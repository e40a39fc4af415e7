"""What the jobs of `dcdm evaluate` tell of what they found: a document, where it lies, and tables for the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.stages.evaluation_jobs import ATLAS, CHECK, EXPERIMENT, FILTER, PLAN

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dcdm_cli.run.session import Session
    from dcdm_cli.run.store import StageRecord


@dataclass(frozen=True)
class Told:
    """lines: tables and sentences for people. unread: images that could not be read, and so are not in it."""

    document: dict[str, Any]
    path: Path
    lines: Sequence[RenderableType] = ()
    unread: int = 0


def job_told(session: Session, job: str, which: str, record: StageRecord) -> Told:
    """Of one of the jobs in a run (`evaluation_jobs.IN_A_RUN`). which: the name of an experiment."""
    if job == EXPERIMENT:
        return experiment_told(session, which, record)
    tell = {CHECK: check_told, FILTER: filter_told, ATLAS: atlas_told, PLAN: next_plan_told}
    return tell.get(job, evaluation_told)(session, record)


def evaluation_told(session: Session, record: StageRecord) -> Told:
    """Its tables, which become CSV files of the run too, what they say in words, and what to do now."""
    from dcdm_cli.reports.advice import advice_lines
    from dcdm_cli.reports.formatting import summary_sentences
    from dcdm_cli.reports.table import sentence, shown
    from dcdm_cli.reports.tables import saved_tables, summary_tables
    from dcdm_cli.stages.report import run_advice

    run = session.run
    tables = saved_tables(summary_tables(record.results), run.tables / "evaluation")
    below = {table.sentence for table in tables}  # said already, where their numbers are
    said = [text for text in summary_sentences(record.results) if text not in below]
    lines = [*shown(tables), *(sentence(text) for text in said)]
    lines += advice_lines(run_advice(session, record.results))
    return Told(record.results, run.evaluation / "report.html", lines)


def experiment_told(session: Session, name: str, record: StageRecord) -> Told:
    from dcdm_cli.evaluation.experiments import find_experiment
    from dcdm_cli.reports.experiment_tables import experiment_tables
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables
    from dcdm_cli.stages.experiments.run import files_of

    files = files_of(session, find_experiment(name))
    tables = saved_tables(experiment_tables(record.results), session.run.tables / files.page.stem)
    return Told(record.results, files.page, shown(tables))


def check_told(session: Session, record: StageRecord) -> Told:
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables, summary_tables
    from dcdm_cli.stages.artefacts import of_set

    run, results = session.run, record.results
    tables = saved_tables(summary_tables(results), run.tables / f"artefacts{of_set(run)}")
    return Told(results, run.evaluation / f"artefacts{of_set(run)}.json", shown(tables))


def all_sets_told(session: Session, found: dict[str, Any]) -> Told:
    """found: as `run_compare` gives it."""
    from dcdm_cli.reports.quality_tables import sets_table
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables
    from dcdm_cli.stages.artefacts import SETS

    run = session.run
    tables, file = saved_tables([sets_table(found)], run.tables), run.evaluation / SETS
    return Told({"stage": "compare", "path": str(file), "sets": found}, file, shown(tables))


def filter_told(session: Session, record: StageRecord) -> Told:
    from dcdm_cli.reports.quality_tables import filter_table
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables
    from dcdm_cli.stages.artefacts import REMOVED, of_set

    run, results = session.run, record.results
    tables = saved_tables([filter_table(results)], run.tables / f"filter{of_set(run)}")
    return Told(results, run.evaluation / REMOVED.format(of_set(run)), shown(tables))


def atlas_told(session: Session, record: StageRecord) -> Told:
    from dcdm_cli.reports.atlas_tables import groups_table
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables
    from dcdm_cli.stages.atlas import PAGE

    page = session.run.evaluation / PAGE
    tables = saved_tables([groups_table(record.results["groups"])], session.run.tables / "atlas")
    return Told({"stage": "atlas", "path": str(page), **record.results}, page, shown(tables))


def next_plan_told(session: Session, record: StageRecord) -> Told:
    from dcdm_cli.reports.quality_tables import demand_table
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables
    from dcdm_cli.stages.next_plan import FILE

    file = session.run.evaluation / FILE
    tables = saved_tables([demand_table(record.results)], session.run.tables)
    return Told({"stage": "next-plan", "path": str(file), **record.results}, file, shown(tables))


def image_sets_told(document: dict[str, Any], images: Path) -> Told:
    """document: as `run_image_sets` gives it."""
    from dcdm_cli.reports.quality_tables import image_set_tables
    from dcdm_cli.reports.table import shown

    unread = sum(len(document[name]["rejected"]) for name in ("images", "against"))
    return Told(document, images, shown(image_set_tables(document)), unread)
