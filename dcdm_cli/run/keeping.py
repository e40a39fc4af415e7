"""A run keeps what it is about: what took long is not replaced, nor what it was made from, unless that is said."""

from __future__ import annotations

from collections.abc import Iterator

from dcdm_cli.errors import MismatchError
from dcdm_cli.pace import duration
from dcdm_cli.run.store import PIPELINE, RunFolder, Stage, StageRecord, same_work

# What later work is made from; an evaluation's report only becomes out of date.
USED = (*PIPELINE[:-1], "judge")
LONG = 60.0  # seconds; what took less is made again without asking


def refuse_replacing(run: RunFolder, stage: Stage, what: str) -> None:
    """Raises MismatchError when the stage is about to be made otherwise and something that took long hangs on it as it
    is, or the stage itself did. what: is about to be done, in words.

    What is damaged is made again as it was, without a question. A stage that is stale already may be made otherwise:
    whoever made it so was asked then.
    """
    record = run.record(stage.name)
    if record is None or same_work(record, stage) or any(run.outdated(record)):
        return
    later = [*followers(run, stage.name)]
    counted = [one for one in (record, *later) if one.stage in USED]
    if not any(one.seconds > LONG for one in counted):
        return
    said = "; ".join(f"{one.stage} took {duration(one.seconds)}" for one in counted)
    stale = f", and {', '.join(dict.fromkeys(one.stage for one in later))} would be stale" if later else ""
    raise MismatchError(
        f"{run.path}: {what} replaces what {stage.name} made{stale} ({said})",
        "keep it and use a run folder of its own with --run DIR, or replace it with --force",
        file=run.path,
    )


def followers(run: RunFolder, stage: str) -> Iterator[StageRecord]:
    """Of the finished stages, those that were made from this one, directly or not, in the order of time."""
    made_from = {stage}
    for record in run.records().values():  # in the order of time: what was made from a follower comes after it
        if made_from & record.inputs.keys():
            made_from.add(record.stage)
            yield record
