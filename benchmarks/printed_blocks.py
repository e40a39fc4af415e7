"""Excerpts of what commands print, in documents: blocks between markers, re-made like those of document_blocks.py.

    <!-- printed:docs/tutorial.md:^captions: .*;;^[0-9,]+ images.*?[.]$ -->
    <!-- printed:demo_quick:^Difficulty .* -->
    (whatever is here is replaced)
    <!-- /printed -->

Before the second colon stands a document whose commands transcripts.py has run, or a result with the metrics of an
evaluation, whose closing words are shown as a terminal of 80 columns has them. After it stand patterns, `;;` between
them: what they match is shown, over line ends too, each command of a document above its own; a command without a match
is left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dcdm_cli.errors import NotFoundError
from dcdm_cli.reports.advice import advice, advice_lines
from dcdm_cli.reports.formatting import summary_sentences
from dcdm_cli.reports.table import sentence

PRINTED = re.compile(r"^(<!-- printed:([^:\s]+):(.*?) -->)\n.*?^(<!-- /printed -->)", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COLUMNS = 80


def render_printed(text: str, document: Path, root: Path, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The document with every such block re-made. Raises NotFoundError for what is named and not there."""

    def made(found: re.Match[str]) -> str:
        begin, name, patterns, end = found.groups()
        shown = _shown(name, patterns.split(";;"), root, results)
        if not shown:
            raise NotFoundError(
                f"{document.name} quotes {name}, which prints nothing like that", patterns, file=document
            )
        return f"{begin}\n```console\n{shown}\n```\n{end}"

    return PRINTED.sub(made, text)


def _shown(name: str, patterns: list[str], root: Path, results: Mapping[str, Mapping[str, Any]]) -> str:
    if name in results:
        metrics = results[name]["metrics"]
        console = Console(width=COLUMNS, file=io.StringIO())
        with console.capture() as said:
            for line in (*map(sentence, summary_sentences(metrics)), *advice_lines(advice(metrics))):
                console.print(line)
        return "\n".join(_matches(_stripped(said.get()), patterns))
    file = root / name
    if not file.is_file():
        raise NotFoundError(f"there is no document or result {name!r}", "name one that is there", file=file)
    lines = []
    for command, output in _commands(file.read_text("utf-8")):
        if found := list(_matches(output, patterns)):
            lines += [f"$ {command}", *found]
    return "\n".join(lines)


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of the document with what it printed."""
    for block in CONSOLE.finditer(text):
        for part in re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def _matches(output: str, patterns: list[str]) -> Iterator[str]:
    """In the order in which they stand in the output."""
    whole = re.compile("|".join(f"(?:{pattern.strip()})" for pattern in patterns), re.MULTILINE)
    yield from (found[0] for found in whole.finditer(output))


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
