from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.reports import tables
from dcdm_cli.reports.quality_tables import (
    copying_table,
    cost_table,
    demand_table,
    fidelity_table,
    filter_table,
    sets_table,
)
from dcdm_cli.reports.summing_up import accuracy_words, classes_words, filter_words, measures_words
from dcdm_cli.reports.table import ResultTable
from dcdm_cli.safe_text import show


def drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(table)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def manifest(names: list[str], scores: list[tuple[int, float | None, bool]]) -> Manifest:
    rows = [{"path": "x", "label": label, "difficulty": s, "suspect_label": bad} for label, s, bad in scores]
    return Manifest.from_rows(rows, names)


def test_scores_per_class_hardest_first():
    table = tables.score_table(
        manifest(["cat", "dog", "none"], [(0, 0.25, False), (0, None, False), (1, 0.75, True), (1, 0.25, False)])
    )
    assert table.rows == (
        ("dog", "2", "0.50", "50.0 %", "1"),
        ("cat", "2", "0.25", "0.0 %", "0"),
        ("none", "0", "–", "–", "0"),
        ("all", "4", "0.42", "33.3 %", "1"),
    )


def test_many_classes_end_in_one_row():
    names = [f"class {i}" for i in range(20_000)]
    rows = tables.score_table(manifest(names, [(i, (i % 100) / 100, False) for i in range(20_000)])).rows
    assert len(rows) == tables.MAX_CLASSES + 1
    assert rows[0][:3] == ("class 99", "1", "0.99")
    assert rows[-2][:2] == ("other (19981 classes)", "19981")
    assert rows[-1][:2] == ("all", "20000")


def test_no_images_is_no_error():
    assert tables.score_table(manifest([], [])).rows == (("all", "0", "–", "–", "0"),)


def test_hostile_names_are_plain_text(metrics):
    text = "".join(drawn(table.as_rich()) for table in tables.summary_tables(metrics))
    assert "<script>alert(1)</script>[/x]\\x1b[31m\\u202e" in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[red]a[/x]\\n" in drawn(tables.score_table(manifest(["[red]a[/x]\n"], [(0, 0.5, False)])).as_rich())


@pytest.mark.parametrize(
    ("draw", "cells"),
    [
        (tables.adherence_table, ["0.12", "99.0 %"]),
        (tables.frontier_table, ["0.0 to 0.1", "95.0 %"]),
        (tables.downstream_table, ["997 test images", "96.50 %", "[95.5, 97.5] %"]),
        (tables.paired_table, ["+0.90", "[0.30, 1.50]", "0.008", "better", "cannot tell"]),
        (tables.stages_table, ["12 min 34 s", "76 %", "all"]),
        (fidelity_table, ["generated, judge", "7.74", "12.5", "200"]),
        (cost_table, ["12 min", "3.0 s", "0.2 CPU-h", "unknown", "0.222 CPU-h"]),
    ],
)
def test_tables_show_the_numbers(draw, cells, metrics):
    text = drawn(draw(metrics).as_rich())
    assert all(cell in text for cell in cells)


def test_only_what_was_measured_is_shown(metrics):
    assert len(tables.summary_tables(metrics)) == 8
    assert [s.title for s in tables.summary_tables({"seconds": {"score": 0.0}})] == ["Where the time went"]
    assert tables.summary_tables({}) == []


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain [x] ñ 猫 \N{CAT}", "plain [x] ñ 猫 \N{CAT}"),
        ("a\nb\t\x00\x7f\x85", "a\\nb\\t\\x00\\x7f\\x85"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\udcff", "\\udcff"),
        ("\u202egpj\u2066\u200b", "\\u202egpj\\u2066\\u200b"),
        (3, "3"),
    ],
)
def test_show_escapes_what_does_not_print(raw, shown):
    assert show(raw) == shown


def test_the_filter_says_what_goes_and_what_stays():
    results = {
        "frontier": 0.667, "images": 10, "kept": 7,
        "removed": {"blank": 1, "near_test": 0, "near_train": 0, "label_lost": 2},
        "by_difficulty": [{"difficulty": "medium", "images": 5, "kept": 5}],
    }  # fmt: skip
    rows = dict(filter_table(results).rows)
    assert rows["label lost, and harder than labels hold"] == "2" and rows["kept, medium images"] == "5 of 5"
    assert rows["kept"] == "7 of 10"


def test_who_shares_the_first_place_is_named_with_the_others():
    def of(kept: float) -> dict:
        return {"adherence": {}, "quality": {"images": 3, "label_agreement": kept}}

    found = {"generated": of(1 / 3), "easy": of(0.2), "hard": of(1 / 3)}
    assert sets_table(found).sentence.startswith("The label is kept most often in generated and hard (33.3 %,")
    assert "most often in easy (20.0 %" in sets_table({"easy": of(0.2)}).sentence
    arms = [
        {"name": name, "accuracy_mean": value, "log_loss_mean": 1.5}
        for name, value in {"a": 0.5, "b": 0.9, "c": 0.9}.items()
    ]
    assert accuracy_words(arms).startswith("Highest: b and c with 90.00 %, 40.00 points above a;")
    assert accuracy_words(arms[1:]) == "All alike: b and c with 90.00 %."
    assert measures_words(arms) == "The least log-loss have a, b and c (1.5000)."
    classes = [{"class": str(i), "label_agreement": 0.0, "n": 4} for i in range(9)]
    assert classes_words(classes) == "The label is kept least often in 0, 1, 2 and 6 more (0.0 % of images)."
    gone = {"blank": 2, "near_test": 2, "near_train": 0}
    assert "most for blank and near test;" in filter_words({"kept": 5, "images": 9, "removed": gone})


def test_the_demand_lists_the_most_wanted():
    demand = [{"class": f"c{i}", "easy": 1.0, "medium": 2.0, "hard": 0.5} for i in range(30)]
    table = demand_table({"images": 105, "demand": demand})
    assert (
        len(table.rows) == 20 and table.rows[0] == ("c0", "1.0", "2.0", "0.5", "3.5") and "of 30 classes" in table.title
    )


def test_a_table_as_markdown_keeps_its_columns():
    text = ResultTable("t", ("a", "b"), (("x|y", "1"), ("\x1b[1m", "2"))).markdown()
    assert text.splitlines() == ["| a | b |", "| --- | --: |", "| x\\|y | 1 |", "| \\x1b[1m | 2 |"]


def test_copies_are_counted_in_each_space_by_name(metrics):
    quality = metrics["quality"]
    assert copying_table(metrics).rows == ()
    row = {**quality["leakage"], "features": "packaged (tf_efficientnet_lite0), 160 px", "near_train": 7}
    shown = copying_table({"quality": {**quality, "copying": [row]}}).rows
    assert [cells[0] for cells in shown] == ["thumbnails", "packaged"] and shown[1][1] == "7"


def test_ways_of_scoring_are_shown_with_what_was_not_tried():
    figures = {"accuracy": 0.731, "calibration_error": 0.0412, "seconds": 31.0, "estimate": None}
    slow = {"accuracy": None, "calibration_error": None, "seconds": None, "estimate": 7200.0}
    rows = [{"method": "features", **figures}, {"method": "trained from scratch", **slow}]
    shown = tables.methods_table({"kept": "features", "methods": rows}).rows
    assert shown[0] == ("features (kept)", "73.1 %", "0.041", "31 s") and shown[1][3] == "not tried, about 2 h"
    assert tables.methods_table({"method": "crossfit"}).rows == ()
