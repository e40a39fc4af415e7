from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.reports import tables
from dcdm_cli.safe_text import show


def drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(table)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def manifest(names: list[str], scores: list[tuple[int, float | None, bool]]) -> Manifest:
    rows = [{"path": "x", "label": label, "difficulty": s, "suspect_label": bad} for label, s, bad in scores]
    return Manifest.from_rows(rows, names)


def test_scores_per_class_hardest_first():
    sheet = tables.score_sheet(
        manifest(["cat", "dog", "none"], [(0, 0.25, False), (0, None, False), (1, 0.75, True), (1, 0.25, False)])
    )
    assert sheet.rows == (
        ("dog", "2", "0.50", "50.0 %", "1"),
        ("cat", "2", "0.25", "0.0 %", "0"),
        ("none", "0", "–", "–", "0"),
        ("all", "4", "0.42", "33.3 %", "1"),
    )


def test_many_classes_end_in_one_row():
    names = [f"class {i}" for i in range(20_000)]
    rows = tables.score_sheet(manifest(names, [(i, (i % 100) / 100, False) for i in range(20_000)])).rows
    assert len(rows) == tables.MAX_CLASSES + 1
    assert rows[0][:3] == ("class 99", "1", "0.99")
    assert rows[-2][:2] == ("other (19981 classes)", "19981")
    assert rows[-1][:2] == ("all", "20000")


def test_no_images_is_no_error():
    assert tables.score_sheet(manifest([], [])).rows == (("all", "0", "–", "–", "0"),)


def test_hostile_names_are_plain_text(metrics):
    text = "".join(drawn(table) for table in tables.summary_tables(metrics))
    assert "<script>alert(1)</script>[/x]\\x1b[31m\\u202e" in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[red]a[/x]\\n" in drawn(tables.score_table(manifest(["[red]a[/x]\n"], [(0, 0.5, False)])))


@pytest.mark.parametrize(
    ("draw", "cells"),
    [
        (tables.adherence_table, ["0.12", "99.0 %"]),
        (tables.frontier_table, ["0.0 to 0.1", "95.0 %"]),
        (tables.downstream_table, ["997 test images", "96.50 %", "[95.5, 97.5] %"]),
        (tables.stages_table, ["12 min 34 s", "76 %", "all"]),
    ],
)
def test_tables_show_the_numbers(draw, cells, metrics):
    text = drawn(draw(metrics))
    assert all(cell in text for cell in cells)


def test_only_what_was_measured_is_shown(metrics):
    assert len(tables.summary_tables(metrics)) == 5
    assert [s.title for s in tables.summary_sheets({"seconds": {"score": 0.0}})] == ["Where the time went"]
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
