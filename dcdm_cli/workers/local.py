"""Workers as processes of this machine, one per device.

They ignore signals: the coordinator hears Ctrl-C and tells them. A worker whose coordinator is gone stops at its next
batch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from dcdm_cli.workers.devices import use_device
from dcdm_cli.workers.environment import variables
from dcdm_cli.workers.messages import Message, OpenWorker, failure_of

_STOP = "stop"
_GONE = (EOFError, OSError)  # what reading from a dead process's pipe raises


class LocalTransport:
    """devices: one worker each. threads: CPU threads per worker; None leaves it to the libraries."""

    def __init__(self, open_worker: OpenWorker, devices: Sequence[str], threads: int | None = None) -> None:
        self.open_worker, self.devices, self.threads = open_worker, list(devices), threads
        self.slots = len(self.devices)
        self._workers: dict[int, tuple[BaseProcess, Any]] = {}  # process and pipe

    @property
    def processes(self) -> list[BaseProcess]:
        return [process for process, _ in self._workers.values()]

    def start(self, slot: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        ours, theirs = context.Pipe()
        # Not daemonic: such a process may have no children, and loading images may want some.
        process = context.Process(
            target=_live, args=(theirs, self.open_worker, self.devices[slot]), name=f"dcdm-{slot}"
        )
        with variables(_thread_settings(self.threads)):
            process.start()
        # the child's alone: were it open here too, reading would not end with the child
        theirs.close()
        self._workers[slot] = (process, ours)

    def give(self, slot: int, task: Any) -> None:
        with contextlib.suppress(OSError):  # it has died: `hear` says so
            self._workers[slot][1].send(task)

    def hear(self, timeout_s: float) -> list[Message]:
        pipes: dict[Any, int] = {pipe: slot for slot, (_, pipe) in self._workers.items()}
        return [self._read(pipes[pipe]) for pipe in wait(list(pipes), timeout_s)]

    def ask_to_stop(self) -> None:
        for slot in self._workers:
            self.give(slot, _STOP)

    def close(self) -> None:
        for process, pipe in self._workers.values():
            process.kill()
            process.join()
            pipe.close()
        self._workers = {}

    def _read(self, slot: int) -> Message:
        process, pipe = self._workers[slot]
        try:
            kind, value = pipe.recv()
            return Message(slot, kind, value)
        except _GONE:
            # a closed pipe does not say that the process has ended, and only then has it an exit code
            process.kill()
            process.join()
            pipe.close()
            del self._workers[slot]
            return Message(slot, "died", _how(process.exitcode))


def _live(pipe: Connection, open_worker: OpenWorker, device: str) -> None:
    """A worker's whole life."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        use_device(device)
        worker = open_worker(device, _asked_over(pipe))
        pipe.send(("open", worker.hello))
        while (task := pipe.recv()) != _STOP:
            for value in worker.run(task):
                pipe.send(("said", value))
            pipe.send(("end", None))
    except BaseException as error:  # all: who ends without a word is started again, several times
        with contextlib.suppress(*_GONE):  # the coordinator may be, which is then the error too
            pipe.send(("failed", failure_of(error)))


def _asked_over(pipe: Connection) -> Callable[[], bool]:
    """While a worker is busy the coordinator says nothing but stop; a closed pipe means the same."""
    asked = False

    def should_stop() -> bool:
        nonlocal asked
        if not asked and pipe.poll():
            try:
                asked = pipe.recv() == _STOP
            except _GONE:
                asked = True
        return asked

    return should_stop


def _thread_settings(threads: int | None) -> dict[str, str]:
    """Numeric libraries read these once, when they are imported: they must be set before the process starts."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS") if threads else ()
    return dict.fromkeys(names, str(threads))


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"
