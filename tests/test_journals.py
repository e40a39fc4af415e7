"""Rows that say something else than was written are named, taken out, and made again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from dcdm_cli.run.journals import HASH, append_rows, changed_rows, drop_changed, kept_rows


@dataclass(frozen=True)
class Row:
    key: str
    value: float


ROWS = [Row("é", 0.1), Row("b\n", 1e-9), Row("c", 3.0)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    append_rows(tmp_path / "rows.jsonl", map(asdict, ROWS))
    return tmp_path / "rows.jsonl"


def edited(file: Path, line: int, **values: object) -> None:
    lines = file.read_text("utf-8").splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | values)
    file.write_text("\n".join(lines) + "\n", "utf-8")


def test_rows_are_what_was_written(file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert kept_rows(file, Row, said.append) == ROWS and not said
    assert kept_rows(tmp_path / "none", Row, said.append) == [] and changed_rows(tmp_path / "none") == ""


@pytest.mark.parametrize("values", [{"value": 0.999}, {"key": "d"}, {"more": 1}, {HASH: "0" * 32}, {HASH: None}])
def test_a_changed_row_is_named_once_and_gone(file: Path, values: dict[str, object]) -> None:
    edited(file, 1, **values)
    said: list[str] = []
    assert kept_rows(file, Row, said.append) == [ROWS[0], ROWS[2]]
    (sentence,) = said
    assert f"{file} has rows" in sentence and "(line 2)" in sentence and "made again" in sentence
    append_rows(file, [asdict(ROWS[1])])
    assert kept_rows(file, Row, said.append) == [ROWS[0], ROWS[2], ROWS[1]] and len(said) == 1


def test_rows_from_before_and_torn_ones_are_taken_and_passed_over(file: Path) -> None:
    old = json.dumps(asdict(Row("old", 2.0)))
    file.write_text(f"{old}\n" + file.read_text("utf-8")[:-9], "utf-8")
    said: list[str] = []
    assert kept_rows(file, Row, said.append) == [Row("old", 2.0), *ROWS[:2]] and not said


def test_many_changed_rows_are_told_by_the_first(file: Path) -> None:
    append_rows(file, [asdict(row) for row in ROWS])
    for line in range(5):
        edited(file, line, value=7.0)
    assert "(line 1, 2, 3, …)" in changed_rows(file)
    assert drop_changed(file) and kept_rows(file, Row, print) == [ROWS[2]] and not drop_changed(file)
