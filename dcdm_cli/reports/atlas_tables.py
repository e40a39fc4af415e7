"""What the atlas found, in numbers: groups of alike images per class, real beside generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dcdm_cli.reports.formatting import number, percent
from dcdm_cli.reports.quality_tables import short_features
from dcdm_cli.reports.table import ResultTable

Row = Mapping[str, Any]  # as `evaluation.clusters.hard_groups` gives it
HARDER = 0.05  # by which a mean difficulty has to differ to be worth words


def groups_table(groups: Sequence[Row]) -> ResultTable:
    """A row per group, the hardest of each class first; real and generated images side by side."""
    rows = tuple(
        (
            f"{row['class']} {row['group'] + 1}",
            *_cells(row["real"]),
            taken_for(row["real"]).removeprefix("taken for ") or "-",
            *_cells(row["generated"]),
        )
        for row in groups
    )
    columns = ("class, group", "real", "hard", "taken for", "made", "hard")
    seen = f", in {short_features(_space(groups))}" if groups else ""
    return ResultTable(f"Groups of alike images{seen}", columns, rows, _hardest(groups))


def group_sentences(rows: Sequence[Row]) -> Iterator[str]:
    """Of one class's groups, hardest first."""
    if len(rows) > 1:
        first, last = rows[0]["real"], rows[-1]["real"]
        seen = f"by how they look in {_space(rows)}"
        yield f"The hardest group, {_said(first)}, beside the easiest, {_said(last)}, {seen}."
    for row in rows:
        real, made = row["real"], row["generated"]
        if made and abs(made["difficulty"] - real["difficulty"]) >= HARDER:
            than = "harder" if made["difficulty"] > real["difficulty"] else "easier"
            yield f"Generated images of group {row['group'] + 1} are {than} than its real ones: {_said(made)}."


def taken_for(about: Row) -> str:
    """ "taken for dog 20 %, frog 4 %", or "" where nothing is taken for anything else."""
    rivals = [f"{rival['class']} {percent(rival['share'], 0)}" for rival in about["mistaken_for"]]
    return f"taken for {', '.join(rivals)}" if rivals else ""


def _cells(about: Row | None) -> tuple[str, str]:
    return (str(about["n"]), number(about["difficulty"])) if about else ("-", "-")


def _said(about: Row) -> str:
    images = f"{about['n']} image{'s' if about['n'] != 1 else ''} of mean difficulty {number(about['difficulty'])}"
    return ", ".join(filter(None, (images, taken_for(about))))


def _hardest(groups: Sequence[Row]) -> str:
    """The group of all classes whose real images are hardest."""
    if not groups:
        return ""
    row = max(groups, key=lambda row: row["real"]["difficulty"])
    return f"Hardest: {row['class']}, group {row['group'] + 1}, {_said(row['real'])}, by {_space(groups)}."


def _space(rows: Sequence[Row]) -> str:
    return str(rows[0]["features"])
