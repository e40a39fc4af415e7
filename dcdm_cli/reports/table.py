"""A table as plain cells, which the HTML page shows, and drawn for a terminal or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from dcdm_cli.safe_text import show


@dataclass(frozen=True)
class Sheet:
    """Cells as text. The first column names the row; the others are numbers or short words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def table(self) -> Table:
        """For a terminal. Cells are `Text`: markup in a name stays plain text."""
        table = Table(title=Text(self.title), title_justify="left")
        for index, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(show(cell)) for cell in row))
        return table

    def markdown(self) -> str:
        """For a document: a pipe in a cell does not end it."""
        lines = [self.columns, tuple("---" if i == 0 else "--:" for i in range(len(self.columns))), *self.rows]
        return "\n".join("| " + " | ".join(show(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)
