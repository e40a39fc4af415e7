"""On a real terminal: bars, width, colour, and names that would act on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import FinishedJob, new_run, write_images
from .runner import Command, Conditions

ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}".encode()


class Terminal:
    """A pseudo terminal that a command writes to; `shown` is everything that came, escapes included."""

    def __init__(self, columns: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.path, self._slave, self._parts = Path(os.ttyname(slave)), slave, list[bytes]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._parts.append(os.read(self.master, 65536))
            except OSError:  # the last writer has closed it
                return

    def run(self, *words: str | Path, **env: str) -> tuple[int, bytes]:
        command = Command(words, Conditions(env={"TERM": "xterm-256color", **env}), streams=[self.path] * 2)
        command.process.join(120)
        code = command.process.exitcode
        command.close()
        os.close(self._slave)
        self._reader.join(10)
        os.close(self.master)
        assert code is not None
        return code, b"".join(self._parts)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    yield Terminal(getattr(request, "param", 80))


def lines(shown: bytes) -> list[str]:
    """What can be read, without escapes and what bars have overwritten."""
    return [line.rpartition("\r")[2] for line in ESCAPE.sub(b"", shown).decode().split("\r\n")]


@pytest.mark.parametrize("terminal", [80, 44], indirect=True)
def test_bars_and_a_table_that_fits(terminal: Terminal, photos: Path, tmp_path: Path) -> None:
    width = {80: 80, 44: 44}[struct.unpack("HHHH", fcntl.ioctl(terminal.master, termios.TIOCGWINSZ, bytes(8)))[1]]
    code, shown = terminal.run("score", photos, "--run", new_run(tmp_path / "run"))
    assert code == 0 and BAR in shown and b"cross-fitting" in shown
    read = lines(shown)
    table = [line for line in read if line.startswith(("\u2502", "\u2503", "\u250f"))]
    assert table and all(len(line) <= width for line in table)
    assert str(tmp_path / "run" / "samples.parquet") in read, "the path is in one piece, however narrow the window"
    assert b"\x1b[31m" not in shown, "a class name acted on the terminal"


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_plain_terminals_get_plain_text(terminal: Terminal, photos: Path, tmp_path: Path, env: dict[str, str]) -> None:
    code, shown = terminal.run("score", photos, "--run", new_run(tmp_path / "run"), **env)
    assert code == 0
    if "TERM" in env:
        assert b"\x1b" not in shown and b"cross-fitting: 24/24" in shown
    else:
        assert not re.search(rb"\x1b\[[0-9;]*3[0-8][;m]", shown), "a colour"


def test_errors_and_warnings_are_safe_and_whole(terminal: Terminal, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"\x1b]0;owned\x07": 6, "\u202egpj.exe": 6})
    long = tmp_path / ("x" * 120)
    code, shown = terminal.run("score", photos, "--class-map", long, "--run", new_run(tmp_path / "run"))
    assert code == 10
    assert b"\x07" not in shown and "\u202e".encode() not in shown
    assert {"error: no class map at", str(long)} <= set(lines(shown)), "a path is in one piece, on a line of its own"


def test_a_quiet_command_shows_the_path_and_nothing_else(terminal: Terminal, job: FinishedJob) -> None:
    code, shown = terminal.run("generate", "-q", "--run", job.run)
    assert (code, shown) == (0, f"{job.run / 'generated'}\r\n".encode())
