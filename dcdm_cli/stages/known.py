"""What the run's scorer knows, for whoever rests on it: as `dcdm score` measured it, and whether on images that are new
to it."""

from __future__ import annotations

from typing import Any

from dcdm_cli.run.store import RunFolder


def scorer_known(run: RunFolder) -> dict[str, Any]:
    """{"scorer": its standing, as `competence.competence_of` gives it}; {} where scores are a column of the source."""
    from dcdm_cli.difficulty.competence import maybe_seen

    record = run.record("score")
    found = record.results.get("competence") if record else None
    if found and is_by_own_classifier(run):
        found = maybe_seen(found)
    return {"scorer": found} if found else {}


def is_by_own_classifier(run: RunFolder) -> bool:
    """Whether the scores are of a classifier that this tool did not train (--classifier)."""
    record = run.record("score")
    return record is not None and bool((record.config.get("score") or {}).get("classifier"))


def scorer_words(run: RunFolder) -> str:
    """The same as one sentence; "" where it is not known."""
    from dcdm_cli.reports.formatting import known_sentences

    return " ".join(known_sentences(scorer_known(run)))
