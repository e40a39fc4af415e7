"""One signal asks, a second insists, and who started us decides what is ignored."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcdm_cli import signals
from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.run.progress import Job


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {name: signal.getsignal(getattr(signal, name)) for name in signals.SIGNALS}
    yield
    signals._asked.clear()
    signals._somebody_asks[0] = False
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


class Ended(BaseException):
    """As a process would."""


def ended() -> None:
    raise Ended


def test_the_first_asks_and_the_second_stops() -> None:
    said: list[str] = []
    signals.install_handlers(said.append, ended)
    assert signals.asked_to_stop() is None
    signal.raise_signal(signal.SIGTERM)
    assert signals.asked_to_stop() == "SIGTERM" and "once more to stop now" in said[0]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signals.asked_to_stop() == "SIGINT" and len(said) == 1


def test_the_first_stops_at_once_before_anybody_asks() -> None:
    """What a command begins with, its settings and networks, is no work that could be finished."""
    said: list[str] = []
    signals.install_handlers(said.append, ended)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert signals.asked_to_stop() == "SIGTERM" and said == []


def test_the_first_stops_at_once_while_modules_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to finish then, and nobody asks for seconds."""
    (tmp_path / "slow_library.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)
    said: list[str] = []
    signals.install_handlers(said.append, ended)
    assert signals.asked_to_stop() is None
    with pytest.raises(Ended):
        importlib.import_module("slow_library")
    assert signals.asked_to_stop() == "SIGTERM" and said == []


def test_the_first_stops_at_once_where_nobody_asks_for_seconds() -> None:
    said: list[str] = []
    signals.install_handlers(said.append, ended)
    assert signals.asked_to_stop() is None
    stopping = pytest.raises(InterruptedRunError, match="stopped by SIGHUP; all is kept")
    with stopping as stopped, signals.stopped_at_once("all is kept"):
        signal.raise_signal(signal.SIGHUP)
    assert stopped.value.code == 143 and said == []
    signals._asked.clear()
    with pytest.raises(KeyboardInterrupt), signals.stopped_at_once("somebody else's interrupt stays what it is"):
        raise KeyboardInterrupt


def test_the_exit_code_is_the_signals_wherever_it_comes(tmp_path: Path) -> None:
    inside = "from dcdm_cli import signals; import signal, sys; signals.install_handlers(print, print)\n"
    inside += "try: exec('signal.raise_signal(signal.SIGTERM)')\nexcept KeyboardInterrupt: sys.exit(143)\n"
    (tmp_path / "stopped.py").write_text(inside)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    assert subprocess.run([sys.executable, "-m", "stopped"], env=env, check=False).returncode == 143


def test_a_signal_before_anybody_listens_ends_without_a_word(tmp_path: Path) -> None:
    """The program's own imports take a quarter of a second, and a traceback of them tells nobody anything."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    for words in (["-m", "dcdm_cli"], ["-c", "from dcdm_cli.__main__ import main; main()"]):
        done = subprocess.run(
            [sys.executable, *words, "--help"], env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install_handlers(lambda message: None)
    signal.raise_signal(signal.SIGHUP)
    assert signals.asked_to_stop() is None


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_a_job_stops_where_it_is_asked_and_says_what_is_saved(name: str, code: int) -> None:
    told: list[tuple[str, int, int]] = []
    job = Job(progress=lambda *step: told.append(step), stop_signal=lambda: name if told else None)
    job.stop_if_asked("nothing")
    with pytest.raises(InterruptedRunError, match=f"stopped by {name}; all of it") as caught:
        job.stoppable("all of it")("reading", 3, 0)
    assert caught.value.code == code and told == [("reading", 3, 0)]


def test_a_signal_while_something_is_destroyed_is_nobodys_error() -> None:
    """Python swallows what is raised there, and would print a traceback of it."""
    lines = (
        "from dcdm_cli import signals; import signal",
        "signals.install_handlers(print)",
        "class Last:",
        "    def __del__(self): signal.raise_signal(signal.SIGTERM)",
        "Last()",
        "class Wrong:",
        "    def __del__(self): raise ValueError('said')",
        "Wrong()",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert "StopNow" not in ended.stderr and "said" in ended.stderr


@pytest.mark.parametrize(("late", "code"), [(1, 7), (2, 143)])
def test_a_signal_while_the_program_ends_leaves_its_exit_code_unless_it_comes_again(late: int, code: int) -> None:
    """What it has to say is being said: a traceback of that, and another exit code, would tell nobody anything."""
    lines = (
        "from dcdm_cli import signals; import signal, sys",
        "signals.install_handlers(print)",
        "signals.ending[0] = True",
        f"for _ in range({late}): signal.raise_signal(signal.SIGTERM)",
        "assert signals.asked_to_stop() is None",
        "sys.exit(7)",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
