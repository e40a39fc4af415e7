"""Long work in short pieces: steps that are done once, commands that are asked to stop in time, and go on later.

A step is a name and a function; what it did is kept in `progress.json` of a state folder. Commands get SIGTERM before
the piece is over: `dcdm` and the pretraining script then finish their unit of work, save and leave.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dcdm_cli.files import write_json

ROOT = Path(__file__).resolve().parent.parent
STOPPED = (130, 143)
GRACE = 40  # seconds a command has to save after SIGTERM


class PieceOver(Exception):
    """The time of this piece is up; everything finished is saved."""


@dataclass(frozen=True)
class Step:
    """needs: seconds without which it is not worth starting, for work that cannot be resumed."""

    name: str
    work: Callable[[], dict[str, Any]]
    needs: float = 20


class Clock:
    """The end of the piece. seconds None = no end."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        return None if self.end is None else self.end - time.monotonic()

    def run(self, words: Sequence[str], folder: Path) -> None:
        """Runs a command in `folder` with this checkout's code. Raises PieceOver when it was stopped in time,
        CalledProcessError when it failed."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")])
        with subprocess.Popen(words, cwd=folder, env={**os.environ, "PYTHONPATH": path}) as process:
            try:
                code = process.wait(None if self.left is None else max(1.0, self.left - GRACE))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                code = process.wait()
        if code in STOPPED:
            raise PieceOver
        if code:
            raise subprocess.CalledProcessError(code, words)

    def dcdm(self, *words: str, folder: Path) -> None:
        self.run([sys.executable, "-m", "dcdm_cli", *words], folder)


class Done:
    """Which steps are done, in `progress.json`; a step that is listed is not run again."""

    def __init__(self, state: Path) -> None:
        self.file = state / "progress.json"
        self.done: dict[str, Any] = json.loads(self.file.read_text("utf-8")) if self.file.is_file() else {}

    def forget(self, ending: str) -> None:
        """Steps whose names end so are done again."""
        self.done = {name: result for name, result in self.done.items() if not name.endswith(ending)}

    def run(self, steps: Sequence[Step], clock: Clock) -> str | None:
        """Runs what is missing, in order. Returns the name of the step that waits for the next piece, or None."""
        for step in steps:
            if step.name in self.done:
                continue
            if clock.left is not None and clock.left < step.needs + GRACE:
                return step.name
            print(f"== {step.name}", file=sys.stderr, flush=True)
            started = time.monotonic()
            try:
                result = step.work()
            except PieceOver:
                return step.name
            self.done[step.name] = {"seconds": round(time.monotonic() - started, 1), **result}
            write_json(self.file, self.done)
        return None

    def leave(self, waiting: str | None) -> NoReturn:
        """Ends the script: 0 when all is done, 3 when a step waits for the next piece."""
        print(json.dumps({"done": list(self.done), "next": waiting}))
        raise SystemExit(3 if waiting else 0)
