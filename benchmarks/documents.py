"""Every table and figure of the documents below a folder, from the results behind them.

    python benchmarks/documents.py [ROOT]

Re-makes blocks and values (document_blocks.py, printed_blocks.py) of ROOT/*.md, ROOT/docs/**.md and
ROOT/benchmarks/*.md from ROOT/benchmarks/results/*.json, and their figures in ROOT/docs/images/NAME/. ROOT: this
repository unless given.
Ends with one JSON line: which results there are, and which documents changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from document_blocks import BEGIN, VALUE, Figure, Result, render_document
from printed_blocks import PRINTED, render_printed

from dcdm_cli.errors import DcdmError, MismatchError, NotFoundError
from dcdm_cli.files import write_text
from dcdm_cli.stages.report import Drawing, draw, evaluation_drawings, experiment_drawings

RESULTS, PICTURES = Path("benchmarks") / "results", Path("docs") / "images"
DOCUMENTS = ("*.md", "docs/*.md", "docs/results/*.md", "benchmarks/*.md")


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root = parser.parse_args(words).root
    try:
        changed, results = remake(root)
    except DcdmError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return int(error.code)
    names = [path.relative_to(root).as_posix() for path in changed]
    print(json.dumps({"results": sorted(results), "changed": names}))
    return 0


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
        made = render_printed(made, document, root, results)
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
            if any(marker.search(text) for marker in (BEGIN, VALUE, PRINTED)):
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


if __name__ == "__main__":
    sys.exit(main())
