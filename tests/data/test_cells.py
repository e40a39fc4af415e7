"""Cells that a spreadsheet would run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.data.cells import guarded, unguarded


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "-2+3+cmd|' /C calc'!A0", "+HYPERLINK()", "\t=1", "'=1"])
def test_what_a_spreadsheet_would_run_is_text(cell: str) -> None:
    assert guarded(cell) == f"'{cell}" and unguarded(guarded(cell)) == cell


@pytest.mark.parametrize("cell", ["", "wren", "0.41", "-0.41", "+4.1", "+4.1 [3.6, 5.8]", "it's", "'quoted'", "a=b"])
def test_anything_else_stays_as_it_is(cell: str) -> None:
    assert guarded(cell) == cell == unguarded(cell)


@given(st.text(alphabet="'=+-@\t\r1a ", max_size=6))
def test_nothing_is_lost_on_the_way(cell: str) -> None:
    assert unguarded(guarded(cell)) == cell or guarded(cell) == cell
    assert guarded(cell).lstrip("'")[:1] not in ("=", "@") or guarded(cell).startswith("'")
