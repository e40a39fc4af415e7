"""The paper's claims, each beside what was measured here: holds, does not hold, or cannot tell at so many seeds.

    python benchmarks/claims.py [--results benchmarks/results]

Reads claims.toml and the results that it names, and writes results/claims.json, which docs/results/claims.md shows. A
result that is not there gives the row "not measured". Nothing is decided here: verdicts are those of the results.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, write_result

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
    rows = [*claim_rows(tomllib.loads(CLAIMS.read_text("utf-8"))["claims"], options.results)]
    table = {"title": "What the paper claims, and what was measured here", "columns": [*COLUMNS], "rows": rows}
    counts = {said: sum(row[5].startswith(said) for row in rows) for said in ("holds", "does not hold", "cannot tell")}
    title = "The paper's claims, on small images and a small base"
    write_result("claims", {"title": title, "tables": [table], "counts": counts}, counts)


def claim_rows(claims: list[dict[str, Any]], results: Path) -> Iterator[list[str]]:
    """A table row per row of a claim; the claim itself stands in its first one."""
    for claim in claims:
        for number, row in enumerate(claim["rows"]):
            first = [claim["claim"], claim["paper"]] if number == 0 else ["", ""]
            yield [*first, row["data"], *_measured(row, results), f"`{row['result']}.json`"]


def _measured(row: Mapping[str, Any], results: Path) -> list[str]:
    """Difference, p and verdict."""
    file = results / f"{row['result']}.json"
    if not file.is_file():
        return ["–", "–", "not measured"]
    found = _comparison(json.loads(file.read_text("utf-8"))["document"], row)
    difference = f"{points(found['difference_mean'])} {interval(found['difference_ci95'])}"
    return [difference, probability(found["p_value"]), _verdict(found)]


def _comparison(document: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Raises SystemExit where the result has no such comparison."""
    for cell in document["cells"]:
        if cell["ratio"] != row.get("ratio", cell["ratio"]):
            continue
        if cell["classifier_name"] != row.get("classifier", cell["classifier_name"]):
            continue
        for pair in cell["paired"]:
            if (pair["arm"], pair["against"]) == (row["arm"], row["against"]):
                return pair
    raise SystemExit(f"claims.toml: {row['result']} does not compare {row['arm']!r} with {row['against']!r}")


def _verdict(found: Mapping[str, Any]) -> str:
    said = SAID.get(found["verdict"], found["verdict"])
    return said if said == "does not hold" else f"{said} at {found['seeds']} seeds"


if __name__ == "__main__":
    main()
