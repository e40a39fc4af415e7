"""What scorer and judge know of real images that neither has learnt from, and whether they err on the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.arrays import evenly
from dcdm_cli.run.store import Outcome, Stage
from dcdm_cli.stages.judge import judge_stage
from dcdm_cli.stages.known import is_by_own_classifier

if TYPE_CHECKING:
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.evaluation.judge import Judge
    from dcdm_cli.run.progress import Job
    from dcdm_cli.run.session import Session

MOST = 2000  # real images that the judge is asked about: shares change little beyond


def scorer_and_judge(session: Session, data: Evaluated, judge: Judge | None, job: Job) -> dict[str, Any]:
    """`agreement` and `competence` of metrics.json; measured once per scorer and judge. Warns of a weak judge.
    Without a judge, agreement is None and the scorer's competence stands alone.

    Raises NumericalError for one that is no better than guessing.
    """
    from dcdm_cli.difficulty.competence import JUDGE, SCORER, guard

    if judge is None:
        return {"agreement": None, "competence": {SCORER: _scorer_known(session, data)}}
    record, _ = session.run.run(_stage(session, data), lambda: _asked(session, data, judge, job), force=session.force)
    # of a found record too: `judge.at_chance` is not among what the record depends on
    guard(JUDGE, record.results["competence"][JUDGE], session.config.judge.at_chance, session.console.warn)
    return record.results


def _stage(session: Session, data: Evaluated) -> Stage:
    judge = judge_stage(session, data.manifest.split("judge").digest("sample_id", "label"))
    inputs = {**judge.inputs, "score": session.run.require("score").id}
    return Stage("agreement", judge.config, inputs, reads=(session.run.samples, session.run.evaluation / "judge"))


def _asked(session: Session, data: Evaluated, judge: Judge, job: Job) -> Outcome:
    """The training images: the scorer's predictions of them are out of fold, and the judge has other images."""
    from dcdm_cli.difficulty.competence import JUDGE, SCORER, competence
    from dcdm_cli.evaluation.agreement import error_agreement

    labelled = np.flatnonzero(data.real.column("label") >= 0)
    some = data.real.select(labelled[evenly(len(labelled), MOST)])
    labels, scored = some.column("label").astype(np.int64), some.column("predicted").astype(np.int64)
    judged = judge.labels_of(some)
    known = {SCORER: _scorer_known(session, data), JUDGE: competence(judged, labels, some.class_names)}
    # a judge that shares the scorer's blind spots proves less: that is what agreement tells
    return Outcome([], "", {"agreement": error_agreement(scored, judged, labels), "competence": known}, job.device)


def _scorer_known(session: Session, data: Evaluated) -> dict[str, Any]:
    from dcdm_cli.difficulty.competence import competence, maybe_seen

    predicted, labels = (data.real.column(name).astype(np.int64) for name in ("predicted", "label"))
    found = competence(predicted, labels, data.real.class_names)
    return maybe_seen(found) if is_by_own_classifier(session.run) else found
