"""A table as plain cells, which the HTML page shows, and drawn for a terminal, as Markdown or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dcdm_cli.files import safe_name, write_text
from dcdm_cli.safe_text import show

NAME_WIDTH = 10  # a first column gets at least so much; longer names are folded before a number is broken


@dataclass(frozen=True)
class Sheet:
    """Cells as text. The first column names the row; the others are numbers or short words. sentence: what it says."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentence: str = ""

    def table(self) -> Table:
        """For a terminal. Cells are `Text`: markup in a name stays plain text."""
        table = _WholeWords(title=Text(self.title), title_justify="left")
        for index, name in enumerate(self.columns):
            cells = [name, *(row[index] for row in self.rows)]
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
        """A header and one line per row, as spreadsheets and pandas read them; cells as they are."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.columns, *self.rows])
        return stream.getvalue()


def shown(sheets: Sequence[Sheet]) -> list[RenderableType]:
    """For a terminal: each table with the sentence that sums it up."""
    parts = [(sheet.table(), *([sentence(sheet.sentence)] if sheet.sentence else [])) for sheet in sheets]
    return [part for pair in parts for part in pair]


def sentence(text: str) -> RenderableType:
    """For a terminal: filled to its width; what is to be copied is a `Text` instead, and stays in one piece."""
    return Padding(Text(show(text)), 0)


def save_sheets(sheets: Sequence[Sheet], folder: Path) -> list[Path]:
    """One CSV file per table, named after its title; one that says the same already is left as it is. Returns the
    files. Raises StorageError."""
    files = [folder / f"{safe_name(sheet.title.lower(), 'table')}.csv" for sheet in sheets]
    for sheet, file in zip(sheets, files, strict=True):
        content = sheet.csv()
        if not file.is_file() or file.read_bytes() != content.encode("utf-8"):
            write_text(file, content)
    return files


class _WholeWords(Table):
    """Words are broken only where the terminal is too narrow for the longest ones side by side."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame = 3 * len(self.columns) + 1
        if sum(column.min_width or 0 for column in self.columns) + frame > options.max_width:
            for column in self.columns:
                column.min_width = None
        yield from super().__rich_console__(console, options)
