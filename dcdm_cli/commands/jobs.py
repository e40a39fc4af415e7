"""Which of `dcdm evaluate`'s jobs is meant: by its word, or by the flag that it was."""

from __future__ import annotations

from collections.abc import Mapping

from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.session import Session
from dcdm_cli.stages.evaluation_jobs import ATLAS, CHECK, EXPERIMENT, FILTER, JOBS, PLAN, RUN

OLD_FLAGS = {"--experiment": EXPERIMENT, "--artefacts": CHECK, "--filter": FILTER, "--atlas": ATLAS}
OLD_FLAGS |= {"--next-plan": PLAN}


def chosen_job(
    session: Session, job: str | None, which: str | None, old: Mapping[str, str | bool | None]
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
        session.console.warn(
            f"{flags[0]} goes with the next release: dcdm evaluate {' '.join(filter(None, (job, which)))}"
        )
    if job not in (None, *JOBS):
        raise UsageError(f"evaluate has no job {job!r}", nearest(str(job), list(JOBS)))
    if (job == EXPERIMENT) != (which is not None):
        wrong = "an experiment needs its name or file" if which is None else f"{job} takes no {which!r}"
        raise UsageError(wrong, "for example dcdm evaluate experiment controls")
    return job or RUN, which or ""
