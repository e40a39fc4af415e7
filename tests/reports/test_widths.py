"""Every table fits a terminal of 80 columns with its words whole: on the numbers that were measured."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dcdm_cli.generation.pricing import Price, Rate, Repayment
from dcdm_cli.reports.experiment_tables import experiment_tables
from dcdm_cli.reports.quality_tables import prompt_table, sets_table
from dcdm_cli.reports.strength import strength_table
from dcdm_cli.reports.table import NAME_WIDTH, ResultTable
from dcdm_cli.reports.tables import methods_table, summary_tables
from dcdm_cli.reports.terms import Explained
from dcdm_cli.stages.plan import price_table

from .test_strength_report import STRENGTH

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COLUMNS = 80
EVERYDAY = {
    "images", "class", "time", "share", "stage", "set", "", "of", "devices", "number", "mean", "blank", "classifier",
    "compared in", "comparison", "generated images", "images, features", "method", "prompts of", "real images",
    "training set", "value",
}  # fmt: skip
METHODS = {
    "kept": "features",
    "methods": [
        {"method": "features", "accuracy": 0.91, "calibration_error": 0.02, "seconds": 31.0, "estimate": 31.0},
        {"method": "crossfit", "accuracy": None, "calibration_error": None, "seconds": None, "estimate": 31000.0},
    ],
}
SOURCE = {"source": "template captions", "n": 12000, "target": 0.5, "realised": 0.5, "spearman": -0.5, "agreement": 1}

RATE = Rate(32.0, 5.0, 0.123, 90_000.0, 512)
PRICE = Price(
    1_200_000, 600, 8, "cuda", 36_000.0, 80.0, 10**11, 10**12, 33.3, 1234.5, RATE, Repayment(600.0, 0.4, 2000)
)


def tables() -> Iterator[tuple[str, ResultTable]]:
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text("utf-8"))
        if "metrics" in found:
            metrics = found["metrics"]
            yield from ((file.stem, table) for table in summary_tables(metrics))
            yield file.stem, sets_table({"generated": metrics, "a-name-of-a-set": metrics})
        elif isinstance(found.get("document"), dict) and "kind" in found["document"]:
            yield from ((file.stem, table) for table in experiment_tables(found["document"]))
    yield "methods", methods_table(METHODS)
    yield "prompts", prompt_table([SOURCE, SOURCE])
    yield "strength", strength_table(STRENGTH)
    yield "price", price_table(PRICE)


def test_every_table_has_a_sentence_that_sums_it_up() -> None:
    silent = {f"{name}: {table.title}" for name, table in tables() if table.rows and not table.sentence}
    assert {where for where in silent if "Accuracy" not in where} == set()  # one training set is compared with nothing


def test_every_column_that_is_no_everyday_word_is_explained_where_it_stands() -> None:
    columns = {column for _, table in tables() for column in table.columns}
    assert len(columns) > 60
    assert {column for column in columns - EVERYDAY if not Explained().first(column)} == set()
    assert columns >= EVERYDAY and not any(Explained().first(word) for word in EVERYDAY)


def least_width(table: ResultTable) -> int:
    """Of the longest words side by side, with the frame; names in the first column may be folded."""
    longest = [
        max(len(word) for cell in (name, *(row[i] for row in table.rows)) for word in (cell.split() or [""]))
        for i, name in enumerate(table.columns)
    ]
    return sum([min(longest[0], NAME_WIDTH), *longest[1:]]) + 3 * len(longest) + 1


def test_words_stay_whole_on_eighty_columns() -> None:
    found = list(tables())
    assert len(found) > 50
    wide = {f"{name}: {table.title}": least_width(table) for name, table in found if least_width(table) > COLUMNS}
    assert wide == {}


@pytest.mark.parametrize("words", [("a", "bb ccc"), ("wwwwwwwwwwwwwwwwwwww", "x")])
def test_the_width_is_that_of_the_longest_words(words: tuple[str, str]) -> None:
    assert least_width(ResultTable("t", ("n", "m"), (words,))) == (11 if words[0] == "a" else NAME_WIDTH + 8)


def test_a_cell_stays_on_one_line_where_there_is_room_for_it() -> None:
    columns = ("training set", "extra images", "accuracy", "95 % interval", "log-loss", "harder half", "seeds")
    row = ("a training set of long words", "400", "40.24 %", "[37.5, 42.9] %", "1.7595", "30.00 %", "3")
    console = Console(width=COLUMNS, file=io.StringIO())
    with console.capture() as said:
        console.print(ResultTable("Accuracy", columns, (row,)).as_rich())
    lines = said.get().splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert any("[37.5, 42.9] %" in line for line in lines) and any("a training" in line for line in lines)
