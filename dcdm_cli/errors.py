"""The one exception family users see, and the exit codes behind it."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What the shell gets. Documented in the README; additive only."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    NUMERICAL = 4
    NOT_FOUND = 10
    LOCKED = 11
    MISMATCH = 12
    STORAGE = 20
    MEMORY = 21
    CAPABILITY = 22
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class DcdmError(Exception):
    """A failure the user can act on.

    message: what failed, the value and the rule. hint: the command or edit that fixes it. file: the file at fault.
    """

    code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "", *, file: str | Path | None = None) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
        self.file = str(file) if file is not None else None


class UsageError(DcdmError):
    """A flag, a setting or a file's content breaks a rule."""

    code = ExitCode.USAGE


class NumericalError(DcdmError):
    """NaN, infinity, or a result out of tolerance."""

    code = ExitCode.NUMERICAL


class FlatResponseError(NumericalError):
    """What comes out does not depend on what is asked for."""


class NotFoundError(DcdmError):
    """An input, a model or an earlier stage's output is missing."""

    code = ExitCode.NOT_FOUND


class LockedError(DcdmError):
    """Another process writes to this run folder."""

    code = ExitCode.LOCKED


class MismatchError(DcdmError):
    """What is there was made from other inputs or settings."""

    code = ExitCode.MISMATCH


class StorageError(DcdmError):
    """The disk is full, over quota or read-only."""

    code = ExitCode.STORAGE


class OutOfMemoryError(DcdmError):
    """The device or the host ran out of memory."""

    code = ExitCode.MEMORY


class CapabilityError(DcdmError):
    """The machine or the installation lacks something: a GPU, an extra."""

    code = ExitCode.CAPABILITY


class InterruptedRunError(DcdmError):
    """A signal asked the run to stop; what was finished is saved. signal_name: SIGINT, SIGTERM or SIGHUP."""

    code = ExitCode.INTERRUPTED

    def __init__(self, message: str, hint: str = "", *, signal_name: str = "SIGINT") -> None:
        super().__init__(message, hint)
        if signal_name != "SIGINT":  # a closed terminal counts as SIGTERM
            self.code = ExitCode.TERMINATED
