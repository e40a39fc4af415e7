"""Runs `dcdm` in a process of its own that does not have to import torch first.

`multiprocessing`'s fork server imports the libraries once; every command is a fork of it, with its own streams, working
folder, environment and signals, which can be killed like any other process. Nothing is computed in the server, so no
command sees another's state. Start-up time, closed streams and terminals are tested with `dcdm` itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEAVY = ("torch", "timm", "diffusers", "transformers", "peft", "accelerate", "datasets", "matplotlib.figure")
STAGES = ("captioning.captioner", "difficulty.scorer", "evaluation.downstream", "generation.run", "training.loop")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*HEAVY, *(f"dcdm_cli.{stage}" for stage in STAGES), "sklearn.datasets"])

Finished = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Conditions:
    """cwd, env: as for any process. file_bytes: no file may grow beyond this, as on a full disk. noisy: libraries print
    to stdout all the time. ignored: signals that are ignored from the start, as `nohup` does."""

    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    file_bytes: int | None = None
    noisy: bool = False
    ignored: Sequence[str] = ()
    stdin: str = ""


class Command:
    """A running `dcdm`. stdout and stderr are read when it has ended."""

    def __init__(
        self, words: Sequence[str | Path], conditions: Conditions | None = None, streams: Sequence[Path] = ()
    ) -> None:
        """streams: where stdout and stderr go, if not to files of its own."""
        self.words, conditions = [str(word) for word in words], conditions or Conditions()
        self._folder = tempfile.mkdtemp(prefix="dcdm-cli-")
        self.streams = list(streams) or [Path(self._folder) / name for name in ("stdout", "stderr")]
        self.process = _context.Process(
            target=_main, args=(self.words, self.streams, conditions, _environment(conditions))
        )
        self.process.start()

    def signal(self, name: str) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, getattr(signal, name))

    def finish(self, timeout: float = 600) -> Finished:
        self.process.join(timeout)
        said = [stream.read_text("utf-8", "backslashreplace") for stream in self.streams]
        assert not self.process.is_alive(), f"dcdm {self.words} takes longer than {timeout} s: {said[1]}"
        code = self.process.exitcode
        assert code is not None
        self.close()
        return subprocess.CompletedProcess(self.words, code, *said)

    def wait_until(self, happened: Callable[[], Any], timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.process.is_alive(), self.finish().stderr
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def close(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def run(*words: str | Path, code: int | None = 0, **conditions: Any) -> Finished:
    """Runs to the end, expecting an exit code (None: any), and no library's warning or traceback on the way."""
    done = Command(words, Conditions(**conditions)).finish()
    assert code is None or done.returncode == code, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    return done


@contextlib.contextmanager
def started(*words: str | Path, **conditions: Any) -> Iterator[Command]:
    command = Command(words, Conditions(**conditions))
    try:
        yield command
    finally:
        command.close()


def _environment(conditions: Conditions) -> dict[str, str]:
    """Ours, without what would decide for the command: settings, and the width of a terminal that it is not on."""
    kept = (key for key in os.environ if not key.startswith("DCDM_") and key not in ("COLUMNS", "LINES"))
    return {key: os.environ[key] for key in kept} | dict(conditions.env)


def _make_noise() -> None:
    """Python's print and native code's write, as soon as the command runs and as long as it does."""
    while not os.path.sameopenfile(1, 2):
        time.sleep(0.001)
    while True:
        os.write(1, b"noise from native code\n")  # first: a short command may end between the two
        sys.stdout.write("noise from Python\n")
        sys.stdout.flush()
        time.sleep(0.005)


def _main(words: list[str], streams: list[Path], conditions: Conditions, env: dict[str, str]) -> None:
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    with tempfile.TemporaryFile() as stream:
        stream.write(conditions.stdin.encode())
        stream.seek(0)
        os.dup2(stream.fileno(), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    if conditions.cwd:
        os.chdir(conditions.cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in conditions.ignored:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if conditions.file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (conditions.file_bytes, conditions.file_bytes))
    if conditions.noisy:
        threading.Thread(target=_make_noise, daemon=True).start()
    from dcdm_cli.cli import main

    sys.argv = ["dcdm", *words]
    main()
