"""The jobs of `dcdm evaluate` by their words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import nearest

if TYPE_CHECKING:
    from dcdm_cli.run.session import Session
    from dcdm_cli.run.store import StageRecord

IN_A_RUN = ("run", "experiment", "check", "atlas", "plan", "filter")
RUN, EXPERIMENT, CHECK, ATLAS, PLAN, FILTER = IN_A_RUN
IMAGES = "images"  # of two folders, without a run
JOBS = (*IN_A_RUN, IMAGES)


def run_job(session: Session, job: str, which: str = "") -> StageRecord:
    """which: with an experiment, its built-in name or its TOML file. Raises UsageError for another job."""
    if job not in IN_A_RUN:
        raise UsageError(f"evaluate has no job {job!r} for a run", nearest(job, list(IN_A_RUN)))
    return _work(job, which)(session)


def _work(job: str, which: str) -> Callable[[Session], StageRecord]:
    """Imported only when it is asked for: each brings libraries of its own."""
    if job == EXPERIMENT:
        from dcdm_cli.stages.experiments.run import run_experiment

        return lambda session: run_experiment(session, which)[0]
    if job in (CHECK, FILTER):
        from dcdm_cli.stages.artefacts import run_artefacts, run_filter

        return {CHECK: run_artefacts, FILTER: run_filter}[job]
    if job == ATLAS:
        from dcdm_cli.stages.atlas import run_atlas

        return run_atlas
    if job == PLAN:
        from dcdm_cli.stages.next_plan import run_next_plan

        return run_next_plan
    from dcdm_cli.stages.evaluate import run_evaluate

    return run_evaluate
