"""Who writes to a run folder: what `.lock.json` says of the process that holds its lock."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dcdm_cli.errors import DcdmError
from dcdm_cli.files import write_json
from dcdm_cli.gate import Word, read_document


@dataclass(frozen=True)
class Holder:
    """pid: of the process, on `host`. since: when it took the lock. began: `process_start` of it, "" = not known."""

    host: Word
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    command: Word
    since: Word
    began: Word = ""

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs; of another machine's that is taken for granted."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)  # signal 0 only asks
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's, and so there is one
        # numbers are given again: another process may have this one by now
        now_there = process_start(self.pid)
        return not (self.began and now_there) or self.began == now_there

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid} on {self.host}, since {self.since})"


def read_holder(file: Path) -> Holder | None:
    """None where nobody has left a name, or what is no name."""
    try:
        return read_document(file, Holder, "")
    except (OSError, DcdmError):
        return None


def note_holder(file: Path, command: str) -> None:
    """Says that this process does, and what it is about."""
    pid = os.getpid()
    write_json(file, asdict(Holder(socket.gethostname(), pid, command, now(), process_start(pid))))


def process_start(pid: int) -> str:
    """What tells a process from others that had or will have its number: when it began, in ticks since the machine did.
    "" where the system does not say, as macOS."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return ""
    fields = said.rpartition(")")[2].split()  # the name before it, in brackets, may have blanks
    return fields[19] if len(fields) > 19 else ""


def now() -> str:
    """The time in UTC, ISO 8601 to the millisecond: two stages that began within one second are told apart by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
