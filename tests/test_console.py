"""What is said while working: bars on terminals, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import json

import pytest

from dcdm_cli.console import Console
from dcdm_cli.errors import UsageError


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr("dcdm_cli.console.LINE_EVERY_S", 0.0)
    return Console(out=io.StringIO())


def test_progress_with_and_without_a_known_end(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console.progress("reading", 3, 0)
    console.progress("\x1b[31mtraining", 4, 4)
    assert capsys.readouterr().err.splitlines() == ["reading: 3", "\\x1b[31mtraining: 4/4"]
    console.quiet = True
    console.progress("reading", 4, 4)
    console.note("hello")
    assert capsys.readouterr().err == ""


def test_long_lines_stay_whole(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console.warn("x" * 500)
    console.error(UsageError("y" * 500, "dcdm " + "z" * 500))
    assert [len(line) for line in capsys.readouterr().err.splitlines()] == [509, 507, 512]


def test_a_terminal_gets_lines_of_its_width_with_words_and_commands_whole() -> None:
    from rich.console import Console as RichConsole

    for terminal, lines in ((True, [79, 100, 64, 307]), (False, [245, 307])):
        console, said = Console(out=io.StringIO()), io.StringIO()
        console.err = RichConsole(
            file=said, force_terminal=terminal, width=80, color_system=None, _environ={"TERM": "xterm"}
        )
        console.note("word " * 16 + "x" * 100 + " " + "word " * 13)
        console.error(UsageError("bad", "dcdm " + "z" * 295))
        found = [line.rstrip() for line in said.getvalue().splitlines() if not line.startswith("error")]
        assert [len(line) for line in found] == lines
        assert "x" * 100 in said.getvalue() and "z" * 295 in said.getvalue()


def test_an_error_is_also_a_document_when_asked_for(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console.as_json = True
    console.error(UsageError("bad \x1b", "mend it", file="/x"))
    error = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert error == {
        "type": "error", "code": 2, "kind": "UsageError", "message": "bad \x1b", "hint": "mend it", "file": "/x"
    }  # fmt: skip
