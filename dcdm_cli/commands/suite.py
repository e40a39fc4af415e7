"""`dcdm evaluate --suite DIR`: every table and figure of the documents below DIR, from the results behind them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import write_text
from dcdm_cli.reports.suite import BEGIN, VALUE, Figure, Result, render_document
from dcdm_cli.run.session import Context
from dcdm_cli.stages.report import Drawing, draw, evaluation_drawings, experiment_drawings

RESULTS, PICTURES = Path("benchmarks") / "results", Path("docs") / "images"
DOCUMENTS = ("*.md", "docs/*.md", "benchmarks/*.md")


def run_suite(context: Context, root: Path) -> None:
    changed, results = remake(root)
    names = [path.relative_to(root).as_posix() for path in changed]
    context.console.note(f"{len(results)} results, {len(names)} documents changed")
    context.console.result({"stage": "suite", "results": sorted(results), "changed": names}, root)


def remake(root: Path, *, drawn: bool = True, write: bool = True) -> tuple[list[Path], dict[str, Result]]:
    """Re-makes figures, if `drawn`, and blocks; returns the documents that changed, or would have without `write`.

    Raises NotFoundError without any document.
    """
    results = read_results(root)
    changed, found = [], list(documents(root))
    if not found:
        raise NotFoundError(
            f"no document below {root} has a <!-- figures --> marker", "put one where the numbers belong", file=root
        )
    for document in found:
        text = document.read_text("utf-8")
        made = render_document(
            text, document, results, lambda name, result: make_figures(root, name, result, drawn=drawn)
        )
        if made != text:
            if write:
                write_text(document, made)
            changed.append(document)
    return changed, results


def documents(root: Path) -> Iterator[Path]:
    """Documents with at least one marker or value."""
    for pattern in DOCUMENTS:
        for path in sorted(root.glob(pattern)):
            text = path.read_text("utf-8")
            if BEGIN.search(text) or VALUE.search(text):
                yield path


def read_results(root: Path) -> dict[str, Result]:
    """Name -> result. Raises MismatchError for a file that is not a JSON object."""
    results: dict[str, Result] = {}
    for file in sorted((root / RESULTS).glob("*.json")):
        try:
            content = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise MismatchError(f"{file} is not valid JSON: {error}", "run its script again", file=file) from error
        if isinstance(content, dict) and content.keys() & {"metrics", "document", "tables"}:
            results[file.stem] = content
    return results


def make_figures(root: Path, name: str, result: Result, *, drawn: bool = True) -> Sequence[Figure]:
    """A result's figures in docs/images/<name>/. drawn=False: only says which there are."""
    folder = root / PICTURES / name
    drawings: list[Drawing] = []
    if "document" in result:
        drawings = experiment_drawings(result["document"])
    elif "metrics" in result:
        drawings = evaluation_drawings(result["metrics"])
    if drawn:
        draw(drawings, folder)
    return [Figure(folder / drawing.name, drawing.title) for drawing in drawings]
