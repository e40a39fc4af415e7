"""Workers that count, fail and die on demand. A task is (name, steps, what to do, a folder to leave traces in)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dcdm_cli.errors import StorageError


class ToyTask(NamedTuple):
    name: str
    steps: int = 3
    does: str = ""
    folder: str = ""
    step_s: float = 0.0


class ToyWorker:
    def __init__(self, device: str, should_stop: Callable[[], bool]) -> None:
        self.hello, self.should_stop = {"device": device, "pid": os.getpid()}, should_stop

    def run(self, task: ToyTask) -> Iterator[tuple[str, int]]:
        for step in range(1, task.steps + 1):
            time.sleep(task.step_s)
            if self.should_stop():
                return
            if step == 2:
                misbehave(task)
            yield task.name, step


def misbehave(task: ToyTask) -> None:
    first = Path(task.folder, task.name)
    if task.does == "die" or (task.does == "die once" and not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if task.does == "disk full":
        raise StorageError("cannot write x: no space", "free some space", file="x")
    if task.does == "memory":
        raise MemoryError("of the device")
    if task.does == "a pipe of its own":
        raise EOFError("of its own")
    if task.does == "bug":
        raise ZeroDivisionError("oops")


def open_toy(device: str, should_stop: Callable[[], bool]) -> ToyWorker:
    if device == "none":
        os._exit(7)
    return ToyWorker(device, should_stop)


class DecodingWorker(ToyWorker):
    """Says of itself how it decodes images."""

    def __init__(self, device: str, should_stop: Callable[[], bool]) -> None:
        from dcdm_cli.data.images import decode_options

        super().__init__(device, should_stop)
        self.hello["decodes"] = decode_options()
