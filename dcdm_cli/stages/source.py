"""Whether a run's images are still those that were scored."""

from __future__ import annotations

from collections.abc import Iterator

from dcdm_cli.errors import DcdmError
from dcdm_cli.run.session import Session, recorded_layers
from dcdm_cli.stages.score import scan_options, score_stage

AGAIN = "dcdm score"


def source_changes(session: Session) -> Iterator[tuple[str, str]]:
    """(what has changed since, what to do about it); files are compared by size and time. A source on the hub is not
    asked for."""
    run = session.run
    record = run.records().get("score")
    source = str(record.config.get("source", "-")) if record else "-"
    # standard input cannot be listed again; asking the hub takes a network
    if record is None or source == "-" or source.startswith("hf:"):
        return
    try:
        # of the stages before caption, which is score alone: read as it was then, whatever is set now
        (layer,) = recorded_layers(run, "caption")
        session = session.with_settings(**layer.values)
        # lists the source: what stops that is something that has changed
        now = score_stage(session, source, scan_options(session, source)).inputs
    except DcdmError as error:
        yield f"its source: {error.message}", error.hint
        return
    for name in sorted(record.inputs.keys() | now.keys()):
        if record.inputs.get(name) != now.get(name):
            yield f"{source if name == 'source' else name} has changed since", AGAIN
