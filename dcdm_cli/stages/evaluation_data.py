"""The run's images as an evaluation needs them: checked against its scorer and adapter, warnings said."""

from __future__ import annotations

from dataclasses import replace

from dcdm_cli.evaluation.data import Evaluated
from dcdm_cli.run.session import Session
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import RunFolder


def checked_data(session: Session) -> Evaluated:
    """Raises UsageError for splits or classes that are missing, MismatchError for a run of other data."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.evaluation.data import check_classes, check_scorer, evaluated
    from dcdm_cli.model.adapter import read_adapter
    from dcdm_cli.stages.source import source_changes

    run = session.run
    manifest = read_manifest(run.samples)
    check_scorer(run.scorer)
    data = evaluated(manifest, session.config.evaluate.holdout)
    check_classes(run.adapter, read_adapter(run.adapter).class_names, manifest.class_names)
    changed = [f"{what}, after these images were scored ({remedy})" for what, remedy in source_changes(session)]
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
