"""What the run's scorer knows, for whoever rests on it: as `dcdm score` measured it on images it did not learn from."""

from __future__ import annotations

from typing import Any

from dcdm_cli.run.store import RunFolder


def scorer_known(run: RunFolder) -> dict[str, Any]:
    """{"scorer": its standing, as `competence.competence_of` gives it}; {} where scores are a column of the source."""
    record = run.record("score")
    found = record.results.get("competence") if record else None
    return {"scorer": found} if found else {}


def scorer_words(run: RunFolder) -> str:
    """The same as one sentence; "" where it is not known."""
    from dcdm_cli.reports.formatting import known_sentences

    return " ".join(known_sentences(scorer_known(run)))
