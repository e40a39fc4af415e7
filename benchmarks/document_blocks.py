"""Documents that quote results: blocks between markers, re-made from the JSON files that hold the numbers.

    <!-- figures:demo_quick,digits_controls -->
    (whatever is here is replaced)
    <!-- /figures -->

A name may end in *: all results that begin so, and none is no error. `<!-- figures -->` alone stands for every result
there is. A marker stands at the start of a line; without an end it gets one as soon as there is something to show.
A number in running text is a value of a result, by its keys and a Python format:

    <!-- value:bench_generate:headline/batch 8/reached:.2f -->2.75<!-- /value --> times

Nothing in a block or a value is typed by hand, so that one that differs from what its results render to is an error
(tests/test_documents.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.reports.experiment_tables import experiment_sentences, experiment_tables
from dcdm_cli.reports.formatting import duration, summary_sentences
from dcdm_cli.reports.quality_tables import cost_table, fidelity_table
from dcdm_cli.reports.table import ResultTable
from dcdm_cli.reports.tables import adherence_table, downstream_table, frontier_table, paired_table, sensitive_tables
from dcdm_cli.safe_text import show

BEGIN = re.compile(r"^<!-- figures(?::(?P<names>[A-Za-z0-9_,* -]+?))? -->", re.MULTILINE)
END = "<!-- /figures -->"
VALUE = re.compile(r"(<!-- value:([^:>]+):([^:>]+):([^:>]*) -->)([^<]*)(<!-- /value -->)")
FIRST = "demo_quick"  # leads where all results are shown
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A picture of a result: where it lies and what it shows."""

    path: Path
    text: str


Figures = Callable[[str, Result], Sequence[Figure]]  # result name and content -> pictures, which exist


def render_document(text: str, document: Path, results: Mapping[str, Result], figures: Figures) -> str:
    """The document with every block and value re-made. Raises NotFoundError for what is named and not there."""
    parts, place = [], 0
    text = VALUE.sub(lambda found: _value(found, results, document), text)
    while match := BEGIN.search(text, place):
        end = text.find(END, match.end())
        following = BEGIN.search(text, match.end())
        names = _names(match.group("names"), results, document)
        if end < 0 or (following and following.start() < end):  # no end of its own
            end = match.end() - len(END)
            if not names:
                parts.append(text[place : match.end()])
                place = match.end()
                continue
        blocks = [_block(name, results[name], document, figures) for name in names]
        parts += [text[place : match.end()], "\n\n", *(f"{block}\n\n" for block in blocks), END]
        place = end + len(END)
    return "".join([*parts, text[place:]])


def _value(found: re.Match[str], results: Mapping[str, Result], document: Path) -> str:
    begin, name, path, how, _, end = found.groups()
    value: Any = results.get(name)
    try:
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, Sequence) else value[key]
        return f"{begin}{value:{how}}{end}"
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NotFoundError(
            f"{document.name} quotes {path!r} of the result {name!r}, which is not there ({error!r})",
            f"look it up in benchmarks/results/{name}.json",
            file=document,
        ) from error


def result_order(name: str) -> tuple[bool, str]:
    return name != FIRST, name


def _names(listed: str | None, results: Mapping[str, Result], document: Path) -> list[str]:
    if listed is None:
        return sorted(results, key=result_order)
    names = []
    for name in filter(None, map(str.strip, listed.split(","))):
        found = sorted((key for key in results if fnmatchcase(key, name)), key=result_order)
        names += found if "*" in name else [name]
    missing = [name for name in names if name not in results]
    if missing:
        raise NotFoundError(
            f"{document.name} quotes the result {missing[0]!r}, which is not there",
            f"run its script in benchmarks/, or take the marker out; known: {', '.join(sorted(results)) or 'none'}",
            file=document,
        )
    return names


def _block(name: str, result: Result, document: Path, figures: Figures) -> str:
    title, sentences, tables = _contents(name, result)
    lines = [f"**{show(title)}**", "", *(f"- {show(sentence)}" for sentence in sentences)]
    for table in tables:
        lines += ["", f"{show(table.title)}:", "", table.markdown()]
    for figure in figures(name, result):
        link = Path(os.path.relpath(figure.path, document.parent)).as_posix()
        lines += ["", f"![{show(figure.text)}]({link})"]
    return "\n".join([*lines, "", _source(name, result)])


def _contents(name: str, result: Result) -> tuple[str, Sequence[str], Sequence[ResultTable]]:
    """Raises UsageError for a result of another shape."""
    try:
        return _parts(result.get("title", name), result)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"results/{name}.json cannot be shown: {error!r}", "docs/evaluate.md says what a result holds"
        ) from error


def _parts(title: str, result: Result) -> tuple[str, Sequence[str], Sequence[ResultTable]]:
    """A result holds the `metrics` of an evaluation, the `document` of an experiment, or `tables` of its own."""
    if "metrics" in result:
        metrics = result["metrics"]
        worth, rest = (downstream_table, paired_table), (adherence_table, frontier_table, fidelity_table, cost_table)
        made = [table(metrics) for table in worth] + sensitive_tables(metrics.get("downstream") or {})
        made += [table(metrics) for table in rest]
        return title, summary_sentences(metrics), [table for table in made if table.rows]
    if "document" in result:
        document = result["document"]
        return f"{title}: {document['about']}", experiment_sentences(document), experiment_tables(document)
    tables = [ResultTable(t["title"], tuple(t["columns"]), tuple(map(_cells, t["rows"]))) for t in result["tables"]]
    return title, result.get("sentences", ()), tables


def _cells(row: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(cell) for cell in row)


def _source(name: str, result: Result) -> str:
    parts = [f"`benchmarks/results/{name}.json`"]
    if "command" in result:
        parts.append(f"`{show(result['command'])}`")
    if "wall_seconds" in result:
        parts.append(duration(result["wall_seconds"]))
    parts += [show(result[key]) for key in ("hardware", "date") if key in result]
    parts += [f"{package} {version}" for package, version in result.get("versions", {}).items()]
    return f"<sub>{', '.join(parts)}</sub>"
