"""Pictures of screens and transcripts: what is left on a terminal, and the sum of what commands took."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import pytest
import screens
import transcripts
from rich.console import Console
from rich.progress import Progress
from rich.text import Text


def test_of_bars_that_are_drawn_again_the_last_state_is_on_the_screen() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=60, force_terminal=True)
    console.print("before")
    with Progress(console=console, auto_refresh=False) as bars:
        task = bars.add_task("training", total=10)
        for _ in range(4):
            bars.advance(task)
            bars.refresh()
        console.print("a note")
        bars.refresh()
        lines = [Text.from_ansi(line).plain for line in screens.on_screen(stream.getvalue().replace("\n", "\r\n"))]
    assert [line.split()[0] for line in lines] == ["before", "a", "training"] and "40%" in lines[-1]


def test_a_line_that_is_longer_than_the_screen_goes_on_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "dcdm review --run " + "a-long-name-" * 8 + "end"
    assert "".join(part.plain for part in screens.broken(line)) == line
    assert [len(part) for part in screens.broken(line)] == [80, len(line) - 80]
    assert [part.plain for part in screens.broken("")] == [""] and len(screens.broken("x" * 80)) == 1
    assert all(part.spans for part in screens.broken(f"\x1b[31m{'x' * 90}\x1b[0m")), "colours go on too"
    monkeypatch.setattr(screens, "FOLDER", tmp_path)
    shown = screens.drawn(screens.Screen("x", f"echo '{line}'"), tmp_path).read_text("utf-8")
    assert "-end" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_command_is_shown_as_a_terminal_of_eighty_columns_shows_it(tmp_path: Path) -> None:
    code = "import os,sys; print(os.get_terminal_size().columns, sys.stdout.isatty()); input()"
    words = f"{sys.executable} -c '{code}'"
    shown = screens.shown(screens.Screen("x", words, until="True"), tmp_path)
    assert shown == ["80 True"]  # and it was interrupted, since it waits for ever


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_command_that_waits_is_interrupted_from_the_background_too(tmp_path: Path) -> None:
    """A shell's `&` makes what it starts deaf to SIGINT, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        words = f"{sys.executable} -c 'print(True); input()'"
        assert screens.shown(screens.Screen("x", words, until="True"), tmp_path) == ["True"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_times_of_a_document_are_added_up() -> None:
    took = "<sub>{} s, {} s of processor time (1 thread), a machine</sub>"
    text = "\n".join(["<sub>All of it: not run yet</sub>", took.format(90, 30), took.format(30, 60)])
    total = transcripts.totalled(text).splitlines()[0]
    assert total == "<sub>All of it: 2.0 min, 1.5 min of processor time (1 thread), a machine</sub>"
