"""The judge: a classifier trained on images that neither scorer nor generator saw, kept in the evaluation folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.judge import Judge
from dcdm_cli.run.keeping import refuse_replacing
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.devices import run_features

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.run.progress import Job
    from dcdm_cli.run.session import Session
    from dcdm_cli.run.settings import Config

LACKS = "label agreement, the label frontier, and whether scorer and judge err on the same images"


def without_judge(manifest: Manifest, config: Config) -> str:
    """Why an evaluation of these images has no judge and what it then leaves out, with what would change that; "" where
    it has one. The rest of it needs none."""
    from dcdm_cli.difficulty.judge import check_judged

    try:
        check_judged(manifest.split("judge"), config.judge)
    except UsageError as error:
        return f"without a judge, as {error.message}; what it would say is left out: {LACKS} ({error.hint})"
    return ""


def judge_said(session: Session, data: Evaluated) -> Evaluated:
    """Says that there is no judge, now and in what is made of `data`."""
    why = without_judge(data.manifest, session.config)
    if not why:
        return data
    session.console.warn(f"evaluated {why}")
    return replace(data, warnings=(*data.warnings, f"Evaluated {why}."))


def _refuse_its_features(config: Config, why: str) -> None:
    from dcdm_cli.evaluation.features import JUDGE

    if config.evaluate.features == JUDGE:
        raise UsageError(f"images cannot be compared in the judge's features {why}", "add --features packaged")


def judge_stage(session: Session, images: str) -> Stage:
    """images: hash of the judge's images and their labels."""
    config = session.config
    settings = {**fingerprint(config.judge), "seed": config.evaluate.seed + config.seed}
    return Stage("judge", settings, {"images": images}, others(config.judge))


def _keep_what_took_long(run: RunFolder, stage: Stage) -> None:
    """Raises MismatchError where settings alone would replace a judge that took long. One of other images is made anew:
    who scored these was asked."""
    record = run.record(stage.name)
    if record is not None and record.inputs == stage.inputs:
        refuse_replacing(run, stage, "evaluating with other settings of the judge")


def open_judge(session: Session, manifest: Manifest, job: Job) -> Judge | None:
    """Makes the judge once per run and settings; afterwards reads it back. None where there are too few images for
    one, which `judge_said` says. Raises UsageError where images are then to be compared in its features."""
    from dcdm_cli.difficulty.judge import fit_judge, load_judge
    from dcdm_cli.difficulty.scoring import Scoring
    from dcdm_cli.files import hash_json

    run, config = session.run, session.config
    if why := without_judge(manifest, config):
        _refuse_its_features(config, why)
        return None
    judged, folder = manifest.split("judge"), run.evaluation / "judge"
    # the images themselves, not the record of score: other scores of the same images train no other judge
    data = hash_json([judged.column("sample_id").tolist(), judged.column("label").tolist()])
    stage = judge_stage(session, data)
    seed = stage.config["seed"]

    def work() -> Outcome:
        # with the run's features: images that were looked at before are not looked at again
        place = Scoring(run.checkpoints / "judge", cache=run_features(session, job))
        fitted = fit_judge(judged, config.judge, seed, place, job)
        fitted.save(folder)
        return Outcome([folder], "", {**fitted.results, "images": len(judged)}, job.device)

    if not session.force:
        _keep_what_took_long(run, stage)
    run.run(stage, work, force=session.force)
    looks = run_features(session, job), job
    return Judge(load_judge(folder, job.device), len(judged), job.stoppable("the judge is trained"), looks)
