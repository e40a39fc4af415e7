"""Cells of CSV files that people open in spreadsheets, which take a text with `=` in front for a formula and run it."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBERS = re.compile(r"[-+][-+0-9.,:%()\[\] ]*")  # of which a spreadsheet can make nothing but a number


def guarded(cell: str) -> str:
    """With an apostrophe in front where a spreadsheet would take it for a formula; `unguarded` takes it away again."""
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBERS.fullmatch(cell) else cell


def unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
