"""Who writes to a run folder: the note beside its lock, for those who find it locked."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dcdm_cli.errors import DcdmError
from dcdm_cli.files import write_json
from dcdm_cli.gate import Count, Word, read_document


@dataclass(frozen=True)
class _Holder:
    """.lock.json: who writes to the folder."""

    host: Word
    pid: Count
    command: Word
    since: Word


def note_holder(file: Path, command: str) -> None:
    """Says that this process does, and what it is about."""
    write_json(file, {"host": socket.gethostname(), "pid": os.getpid(), "command": command, "since": now()})


def describe_holder(file: Path) -> str:
    try:
        holder = read_document(file, _Holder, "")
    except (OSError, DcdmError):
        return "its name is not known"
    return f"{holder.command} (process {holder.pid} on {holder.host}, since {holder.since})"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
