"""Tables fit the terminal without breaking words, say what they show, and lie in the run folder as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from dcdm_cli.reports.table import ResultTable, save_tables, shown

SHEET = ResultTable(
    "Differences, seed by seed",
    ("comparison", "points", "95 % interval", "p", "seeds", "verdict", "seeds to tell"),
    (("upsampled_and_more vs real", "+12.25", "[-10.25, +14.75]", "0.012", "8", "cannot tell", "120"),),
    "Nothing can be told yet.",
)


def drawn(width: int) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False)
    for part in shown([SHEET]):
        console.print(part)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_word_is_broken_at_80_columns_and_more(width: int) -> None:
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.replace("│", " ").replace("┃", " ").split()}
    assert {"[-10.25,", "+14.75]", "+12.25", "cannot", "tell", "interval", "comparison", "verdict"} <= words
    assert lines[-1].strip() == SHEET.sentence


def test_a_narrow_terminal_breaks_words_rather_than_the_frame() -> None:
    assert max(map(len, drawn(40))) <= 40


def test_every_table_is_a_csv_file_too(tmp_path: Path) -> None:
    (file,) = save_tables([SHEET], tmp_path / "tables")
    assert file.name == "differences-seed-by-seed.csv"
    with file.open(newline="") as stream:
        assert [tuple(row) for row in csv.reader(stream)] == [SHEET.columns, *SHEET.rows]
