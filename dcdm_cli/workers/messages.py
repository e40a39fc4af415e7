"""What workers are, what they say, and how their failures cross to the coordinator's side."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dcdm_cli import errors
from dcdm_cli.errors import DcdmError, NotFoundError, OutOfMemoryError
from dcdm_cli.files import system_error


class Worker(Protocol):
    """Lives in another process. hello: what the coordinator has to know of it."""

    hello: Any

    def run(self, task: Any) -> Iterator[Any]:
        """Does one task and says what the coordinator should hear, in order. Everything said must be picklable."""
        ...


# (device, asks whether to stop) -> a worker. Must be picklable: a function of a module, or a partial of one.
OpenWorker = Callable[[str, Callable[[], bool]], Worker]


@dataclass(frozen=True)
class Piece:
    """A numbered part of a larger work as a pool's task; its text is for people: `batch 3 of the images`."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of the images"


@dataclass(frozen=True)
class Message:
    """kind: open (value: hello), said (what), end, failed (a `Failure`), died (how, as a sentence)."""

    slot: int
    kind: str
    value: Any = None


@dataclass(frozen=True)
class Failure:
    """An exception as plain text, for any process to read. trace: of an exception that is no `DcdmError`."""

    kind: str
    message: str
    hint: str = ""
    file: str | None = None
    trace: str = ""

    def error(self) -> DcdmError:
        kind = getattr(errors, self.kind, DcdmError)
        return kind(self.message, self.hint, file=self.file)


def failure_of(error: BaseException) -> Failure:
    """A `DcdmError` keeps its kind, text and remedy; running out of memory, and what the operating system refuses,
    become one; the rest is a bug of ours."""
    if isinstance(error, DcdmError):
        return Failure(type(error).__name__, error.message, error.hint, error.file)
    # torch's by its name: coordinators start without torch
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failure(OutOfMemoryError.__name__, f"a worker ran out of memory: {error}", "use a smaller --batch-size")
    if (refused := system_error(error)) is not None:
        return failure_of(refused)
    hint = "set DCDM_DEBUG=1 for the traceback; please report it"
    trace = "".join(traceback.format_exception(error))
    return Failure(DcdmError.__name__, f"a worker failed: {type(error).__name__}: {error}", hint, trace=trace)


def unshared(folder: Path, remedy: str = "put the run folder on a disk that all machines share") -> NotFoundError:
    """What a worker raises that does not find what its coordinator wrote."""
    return NotFoundError(f"{socket.gethostname()} does not see {folder} as the other machines do", remedy, file=folder)
