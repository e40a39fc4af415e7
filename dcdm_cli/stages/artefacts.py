"""What can be said of finished images without generating or comparing anything, and the list of broken ones."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.arrays import evenly
from dcdm_cli.errors import NotFoundError
from dcdm_cli.evaluation.data import Evaluated
from dcdm_cli.evaluation.judge import Judge
from dcdm_cli.evaluation.quality import Checked
from dcdm_cli.files import write_bytes, write_json
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, StageRecord
from dcdm_cli.stages.agreement import scorer_and_judge
from dcdm_cli.stages.devices import settle_generation
from dcdm_cli.stages.evaluate import evaluation_stage, stage_records, the_bill
from dcdm_cli.stages.evaluation_data import checked_data, look_at_sources
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.judge import judge_said, open_judge
from dcdm_cli.stages.quality import checked_images, difficulty_of, generated_images, generated_quality

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

REMOVED, KEPT = "filter{}.jsonl", "kept{}.parquet"  # of a named set, with its name
SETS = "sets.json"


def run_artefacts(session: Session) -> StageRecord:
    """Adherence, quality and cost of the run's generated images; the judge is trained unless it is there already."""
    session = settle_generation(session)
    with session.run.lock("dcdm evaluate check"):
        return _recorded(session)


def run_compare(session: Session) -> dict[str, Any]:
    """The same for every generated set of the run, by its name."""
    run, found = session.run, {}
    with run.lock("dcdm evaluate check --name all"):
        for name in ("", *run.set_names()):
            one = replace(session, run=run.with_images(name))
            if one.run.record("generate") is not None:
                found[name or "generated"] = _recorded(one).results
        if not found:
            raise NotFoundError(f"no generated set in {run.path}", "make some first: dcdm generate --name NAME")
        write_json(run.evaluation / SETS, {"schema": 1, "sets": found})
    return found


def _recorded(session: Session) -> StageRecord:
    run = session.run
    look_at_sources(session)
    stage = evaluation_stage(session, f"evaluate-artefacts{of_set(run)}", _inputs(session))
    record, done = run.run(stage, lambda: _look(session), force=session.force)
    if not done:
        session.console.note(f"artefacts of {run.images_name or 'generated'}: nothing changed (--force measures again)")
    return record


def of_set(run: RunFolder) -> str:
    """What the files and records of a named set have at their end."""
    return f"-{run.images_name}" if run.images_name else ""


def run_filter(session: Session) -> StageRecord:
    """Writes which generated images are broken, and a manifest of the others; no image is touched."""
    session, run = settle_generation(session), session.run
    with run.lock("dcdm evaluate filter"):
        look_at_sources(session)
        stage = evaluation_stage(session, f"filter{of_set(run)}", _inputs(session))
        record, done = run.run(stage, lambda: _filter(session), force=session.force)
    if not done:
        session.console.note("evaluate filter: nothing changed, skipped (--force runs it again)")
    return record


def _inputs(session: Session) -> dict[str, str]:
    return {"score": session.run.require("score").id, "generate": session.run.require("generate").id}


def _look(session: Session) -> Outcome:
    from dcdm_cli.reports.html import Extras, write_report
    from dcdm_cli.stages.report import draw, evaluation_drawings, how_made

    run, job, clock = session.run, open_job(session), time.monotonic()
    data = judge_said(session, checked_data(session))
    judge, images = open_judge(session, data.manifest, job), _required(session, data)
    known = scorer_and_judge(session, data, judge, job)
    metrics = {"schema": 1, "device": job.device, "adherence": _adherence(session, data, images, judge, job)}
    metrics |= {"agreement": known["agreement"], "competence": known["competence"]}
    metrics["quality"] = generated_quality(session, data, judge, job)
    # no arms are compared here, so that there is no price of a point
    metrics["cost"] = the_bill(session, stage_records(session), None)
    metrics["warnings"] = list(data.warnings)
    metrics["seconds"] = {"artefacts": round(time.monotonic() - clock, 2)}
    file, report = (run.evaluation / f"artefacts{of_set(run)}.{ending}" for ending in ("json", "html"))
    write_json(file, metrics)
    figures = draw(evaluation_drawings(metrics), run.evaluation / f"artefacts{of_set(run)}")
    write_report(report, metrics, figures, title="The generated images as they are", extras=Extras(how_made()))
    return Outcome([file, report], "", metrics, job.device, listed=[run.evaluation, run.generated])


def _adherence(session: Session, data: Evaluated, images: Manifest, judge: Judge | None, job: Job) -> dict[str, Any]:
    """Target against measured difficulty of finished images, read in batches."""
    from dcdm_cli.evaluation.adherence import adherence, label_frontier, per_class, per_source

    target, realised = images.column("target_difficulty"), difficulty_of(session, images, job)
    label = images.column("label").astype(np.int64)
    agrees, judged = None, {}
    if judge is not None:
        agrees = judge.labels_of(images) == label
        judged = label_frontier(_real(data.real, judge, len(images)), (realised, agrees))
    by_source = per_source(target, realised, agrees, images.table["prompt_source"].to_pylist())
    return {
        **adherence(target, realised, agrees),
        **({"prompt_sources": by_source} if by_source else {}),
        "classes": per_class(target, realised, agrees, label, images.class_names),
        **judged,
    }


def _real(train: Manifest, judge: Judge, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Difficulty and label agreement of real images, no more than generated ones: training images, which have their
    scores from networks that were not trained on them, and which the judge has not seen either."""
    scored = np.flatnonzero(np.isfinite(train.column("difficulty")))
    some = train.select(scored[evenly(len(scored), most)])
    return some.column("difficulty"), judge.labels_of(some) == some.column("label")


def _filter(session: Session) -> Outcome:
    from dcdm_cli.data.manifest import write_manifest
    from dcdm_cli.evaluation.leakage import counted, filter_reasons

    run, job = session.run, open_job(session)
    data = judge_said(session, checked_data(session))
    images = _required(session, data)
    judge = open_judge(session, data.manifest, job)
    scorer_and_judge(session, data, judge, job)  # images are taken away on the judge's word: it has to know something
    checked = checked_images(session, data, images, judge, job)
    edge = _edge(checked)
    reasons = filter_reasons(checked.findings, edge)
    kept = np.array([reason is None for reason in reasons])
    removed, rest = (run.evaluation / name.format(of_set(run)) for name in (REMOVED, KEPT))
    write_bytes(removed, _lines(checked, reasons).encode())
    write_manifest(images.select(kept), rest)
    results = {"frontier": edge, **counted(reasons, checked.findings), "list": removed.name, "kept_manifest": rest.name}
    return Outcome([removed, rest], "", results, job.device, listed=[run.evaluation, run.generated])


def _edge(checked: Checked) -> float | None:
    """The difficulty up to which generated images keep their labels, at least `MEDIUM`. From generated images alone: a
    filter must not learn from test images. None without a judge."""
    from dcdm_cli.evaluation.adherence import frontier, labels_hold_until
    from dcdm_cli.evaluation.leakage import MEDIUM

    findings = checked.findings
    if findings.agrees is None:
        return None
    nothing = np.zeros(0, np.float32), np.zeros(0, bool)
    held = labels_hold_until(frontier(nothing, (findings.difficulty, findings.agrees)), "generated")
    return round(max(MEDIUM, held or 0.0), 4)


def _lines(checked: Checked, reasons: list[str | None]) -> str:
    lines = []
    rows = zip(checked.images.rows(), reasons, checked.findings.difficulty.tolist(), strict=True)
    for i, (row, reason, difficulty) in enumerate(rows):
        if reason is None:
            continue
        entry = {"sample_id": row["sample_id"], "path": row["path"], "label": row["label"], "reason": reason}
        entry |= {"measured_difficulty": round(difficulty, 4) if np.isfinite(difficulty) else None}
        entry |= {"distance_to_train": round(float(checked.to_train.distance[i]), 4)}
        entry |= {"distance_to_test": round(float(checked.to_test.distance[i]), 4)}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def _required(session: Session, data: Evaluated) -> Manifest:
    images = generated_images(session, data)
    if images is None:
        raise NotFoundError(
            f"no generated images in {session.run.generated}",
            "make some first: dcdm generate",
            file=session.run.generated,
        )
    return images
