"""A table as plain cells, which the HTML page shows, and drawn for a terminal, as Markdown or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dcdm_cli.data.cells import guarded
from dcdm_cli.files import safe_name, write_text
from dcdm_cli.safe_text import show

NAME_WIDTH = 9  # a first column gets at least so much; longer names are folded before a number is broken


@dataclass(frozen=True)
class ResultTable:
    """Cells as text. The first column names the row; the others are numbers or short words. sentence: what it says."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentence: str = ""

    def as_rich(self) -> Table:
        """For a terminal. Cells are `Text`: markup in a name stays plain text."""
        table = _WholeWords(title=Text(self.title), title_justify="left")
        for index, name in enumerate(self.columns):
            cells = [name, *(row[index] for row in self.rows)]
            table.wished.append(max([len(show(cell)) for cell in cells[1:]], default=0) if index else 0)
            table.longest.append(max(len(show(cell)) for cell in cells))
            longest = max(len(word) for cell in cells for word in (show(cell).split() or [""]))
            least = min(longest, NAME_WIDTH) if index == 0 else longest
            table.add_column(
                Text(name), justify="left" if index == 0 else "right", overflow="fold", min_width=max(1, least)
            )
        for row in self.rows:
            table.add_row(*(Text(show(cell)) for cell in row))
        return table

    def markdown(self) -> str:
        """For a document: a pipe in a cell does not end it."""
        lines = [self.columns, tuple("---" if i == 0 else "--:" for i in range(len(self.columns))), *self.rows]
        return "\n".join("| " + " | ".join(show(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)

    def csv(self) -> str:
        """A header and one line per row, as spreadsheets and pandas read them; cells as they are, but for formulas."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(
            [guarded(c) for c in row] for row in [self.columns, *self.rows]
        )
        return stream.getvalue()


def shown(tables: Sequence[ResultTable]) -> list[RenderableType]:
    """For a terminal: each table with the sentence that sums it up."""
    parts = [(table.as_rich(), *([sentence(table.sentence)] if table.sentence else [])) for table in tables]
    return [part for pair in parts for part in pair]


def sentence(text: str) -> RenderableType:
    """For a terminal: filled to its width; what is to be copied is a `Text` instead, and stays in one piece."""
    return Padding(Text(show(text)), 0)  # no Text, which the console leaves in one piece


def save_tables(tables: Sequence[ResultTable], folder: Path) -> list[Path]:
    """One CSV file per table, named after its title; one that says the same already is left as it is. Returns the
    files. Raises StorageError."""
    files = [folder / f"{safe_name(table.title.lower(), 'table')}.csv" for table in tables]
    for table, file in zip(tables, files, strict=True):
        content = table.csv()
        if not file.is_file() or file.read_bytes() != content.encode("utf-8"):
            write_text(file, content)
    return files


class _WholeWords(Table):
    """Words are broken only where the terminal is too narrow for the longest ones side by side, and cells as few as can
    be: an interval on two lines is hard to read. wished: width of each column's longest cell below its head, 0 = may be
    broken; longest: with its head."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.wished: list[int] = []
        self.longest: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - 3 * len(self.columns) - 1  # what rich draws between and beside the columns
        least = [column.min_width or 0 for column in self.columns]
        if sum(least) > room:
            for column in self.columns:  # too narrow for whole words: rich breaks them
                column.min_width = None
        elif sum(self.longest) > room:
            widths = _widened(_widened(least, self.wished, room), self.longest, room)
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
        yield from super().__rich_console__(console, options)


def _widened(widths: Sequence[int], wished: Sequence[int], room: int) -> list[int]:
    """Each as wide as wished, from the left, where there is room for all of it; the first takes what there is."""
    made, left = list(widths), room - sum(widths)
    for index, wish in enumerate(wished):
        more = max(0, wish - made[index])
        more = min(more, left) if index == 0 else more
        if more <= left:
            made[index] += more
            left -= more
    return made
