"""The run's images as an evaluation needs them: checked against its scorer and adapter, warnings said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dcdm_cli.evaluation.data import Evaluated
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import RunFolder
from dcdm_cli.signals import asked_to_stop

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest


def look_at_sources(session: Session) -> None:
    """Before a stage is taken for fresh: whether the images that it is about are still those that were scored. They are
    read only where size or time of some has changed, which is said. Raises MismatchError for other pictures."""
    if not warn_of_sources(session):
        return
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.stages.jobs import open_job

    open_job(session)  # settles how images are decoded
    _refuse_other_pictures(session, read_manifest(session.run.samples))


def warn_of_sources(session: Session) -> list[str]:
    """Says of the source what has changed since its images were scored."""
    changed = _source_changes(session)
    for warning in changed:
        session.console.warn(warning)
    return changed


def checked_data(session: Session) -> Evaluated:
    """Raises UsageError for splits or classes that are missing, MismatchError for a run of other data, and for images
    of the judge or to be tested on that do not show what they showed when they were scored."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.evaluation.data import check_classes, check_scorer, evaluated
    from dcdm_cli.model.adapter import read_adapter

    run = session.run
    manifest = read_manifest(run.samples)
    check_scorer(run.scorer)
    data = evaluated(manifest, session.config.evaluate.holdout)
    check_classes(run.adapter, read_adapter(run.adapter).class_names, manifest.class_names)
    changed = _source_changes(session)
    # Training images are many: they are read where something says that they may be others.
    for images in (manifest.split("judge"), data.held_out, *([data.real] if changed else [])):
        _refuse_other_pictures(session, images)
    data = replace(data, warnings=(*changed, *stale_adapter(run), *data.warnings))
    for warning in data.warnings:
        session.console.warn(warning)
    return data


def stale_adapter(run: RunFolder) -> list[str]:
    """What is to be said where it was made from scores or captions that have changed since."""
    record = run.require("finetune")
    return [
        f"the adapter is stale ({why}): dcdm finetune{run_words(run)} makes a new one" for why in run.outdated(record)
    ]


def _source_changes(session: Session) -> list[str]:
    from dcdm_cli.stages.source import source_changes

    return [f"{what}, after these images were scored ({remedy})" for what, remedy in source_changes(session)]


def _refuse_other_pictures(session: Session, images: Manifest) -> None:
    from dcdm_cli.data.shown import refuse_other_pictures

    job = Job(progress=session.console.progress, stop_signal=asked_to_stop)
    refuse_other_pictures(images, job.stoppable("nothing is begun yet"))
