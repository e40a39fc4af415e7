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
    """pid: of the process, on `host`. since: when it took the lock."""

    host: Word
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    command: Word
    since: Word

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
            return True  # somebody else's, and so there is one
        return True

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
    write_json(file, asdict(Holder(socket.gethostname(), os.getpid(), command, now())))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
