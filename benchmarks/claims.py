"""The paper's claims, each beside what was measured here: holds, does not hold, or cannot tell at so many seeds.

    python benchmarks/claims.py [--results benchmarks/results]

Reads claims.toml and the results that it names, and writes results/claims.json, which docs/results/claims.md shows. A
result that is not there gives the row "not measured". Nothing is decided here: verdicts are those of the results, and
of several series of one design together those that `dcdm evaluate` would give their seeds.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, write_result

from dcdm_cli.evaluation.statistics import compare
from dcdm_cli.reports.formatting import interval, points, probability

CLAIMS = Path(__file__).resolve().with_name("claims.toml")
COLUMNS = ("claim", "in the paper", "data", "points, 95 % interval", "p", "verdict", "result")
SAID = {
    "better": "holds",
    "worse": "does not hold",
    "points to better": "points to it",
    "points to worse": "points away",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    claims = tomllib.loads(CLAIMS.read_text("utf-8"))["claims"]
    rows = [*claim_rows(claims, options.results)]
    table = {"title": "What the paper claims, and what was measured here", "columns": [*COLUMNS], "rows": rows}
    counts = {said: sum(row[5].startswith(said) for row in rows) for said in ("holds", "does not hold", "cannot tell")}
    title = "The paper's claims, on small images and a small base"
    together = together_of(claims, options.results)  # documents quote it
    write_result("claims", {"title": title, "tables": [table], "counts": counts, "together": together}, counts)


def together_of(claims: list[dict[str, Any]], results: Path) -> dict[str, Any]:
    """`arm against arm` -> the comparison of several series together, where all of them are there."""
    rows = [row for claim in claims for row in claim["rows"] if not isinstance(row["result"], str)]
    found = {f"{row['arm']} against {row['against']}": _found(row, results) for row in rows}
    return {name: comparison for name, comparison in found.items() if comparison}


def claim_rows(claims: list[dict[str, Any]], results: Path) -> Iterator[list[str]]:
    """A table row per row of a claim; the claim itself stands in its first one."""
    for claim in claims:
        for number, row in enumerate(claim["rows"]):
            first = [claim["claim"], claim["paper"]] if number == 0 else ["", ""]
            series = _series(row)
            yield [*first, row["data"], *_measured(row, results), ", ".join(f"`{name}.json`" for name in series)]


def _series(row: Mapping[str, Any]) -> list[str]:
    """Names of the row's results: one, or several with seeds of their own."""
    return [row["result"]] if isinstance(row["result"], str) else row["result"]


def _measured(row: Mapping[str, Any], results: Path) -> list[str]:
    """Difference, p and verdict."""
    found = _found(row, results)
    if found is None:
        return ["–", "–", "not measured"]
    difference = f"{points(found['difference_mean'])} {interval(found['difference_ci95'])}"
    return [difference, probability(found["p_value"]), _verdict(found)]


def _found(row: Mapping[str, Any], results: Path) -> Mapping[str, Any] | None:
    """None where a result is not there."""
    files = [results / f"{name}.json" for name in _series(row)]
    if not all(file.is_file() for file in files):
        return None
    documents = [json.loads(file.read_text("utf-8"))["document"] for file in files]
    if len(documents) > 1 or "against_ratio" in row:
        return _computed(documents, row)
    # experiments compare with their baseline and their focus; another pair of arms has the same seeds too
    return _listed(_cell(documents[0], row, row.get("ratio")), row) or _computed(documents, row)


def _cell(document: Mapping[str, Any], row: Mapping[str, Any], ratio: float | None) -> Mapping[str, Any]:
    """ratio: None = the only one, or the first. Raises SystemExit where the result has no such ratio, classifier, or
    arms."""
    for cell in document["cells"]:
        names = {arm["name"] for arm in cell["arms"]}
        wanted = (ratio or cell["ratio"], row.get("classifier", cell["classifier_name"]))
        if wanted == (cell["ratio"], cell["classifier_name"]) and {row["arm"], row["against"]} <= names:
            return cell
    raise SystemExit(f"claims.toml: {row['result']} has no arms {row['arm']!r} and {row['against']!r}")


def _listed(cell: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The comparison as the experiment has it."""
    wanted = row["arm"], row["against"]
    return next((pair for pair in cell["paired"] if (pair["arm"], pair["against"]) == wanted), None)


def _computed(documents: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
    """Of series with the same settings and other seeds and adapters, of two ratios, or of two arms of one result."""
    ratios = {"arm": row.get("ratio"), "against": row.get("against_ratio", row.get("ratio"))}
    values, against = (
        [x for document in documents for x in _accuracies(_cell(document, row, ratios[side]), row[side])]
        for side in ("arm", "against")
    )
    return compare(values, against)


def _accuracies(cell: Mapping[str, Any], name: str) -> list[float]:
    return next(arm["accuracy"] for arm in cell["arms"] if arm["name"] == name)


def _verdict(found: Mapping[str, Any]) -> str:
    said = SAID.get(found["verdict"], found["verdict"])
    return said if said == "does not hold" else f"{said} at {found['seeds']} seeds"


if __name__ == "__main__":
    main()
