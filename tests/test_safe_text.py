from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.safe_text import show


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\r\tc\x07", r"a\nb\r\tc\x07"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("caf\udce9", r"caf\udce9"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_what_would_act_on_a_terminal_is_written_out(hostile: str, shown: str) -> None:
    assert show(hostile) == shown


@pytest.mark.parametrize("harmless", ["", "test tube", "Käse 漢字 🐈", "[bold]x[/]", "a/b\\c"])
def test_what_prints_stays(harmless: str) -> None:
    assert show(harmless) == harmless


@given(st.text(st.characters(codec=None)))
def test_the_result_always_prints_on_one_line(text: str) -> None:
    made = show(text)
    assert made.isprintable()
    assert len(made.splitlines()) <= 1
    made.encode("utf-8")
