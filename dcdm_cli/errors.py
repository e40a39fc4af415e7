"""The one exception family users see, and the exit codes behind it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What the shell gets; docs/cli.md is made from the words below each. Additive only."""

    OK = 0
    """done"""
    FAILED = 1
    """failed; `DCDM_DEBUG=1` shows the traceback"""
    USAGE = 2
    """wrong flag, setting or input"""
    PARTIAL = 3
    """done, but some images were skipped or failed (`rejected.jsonl` says which and why)"""
    NUMERICAL = 4
    """numerical failure: NaN, or difficulty that does not respond"""
    NOT_FOUND = 10
    """an input, a model or an earlier stage is missing"""
    LOCKED = 11
    """another process writes to this run folder"""
    MISMATCH = 12
    """what is there was made with other settings"""
    STORAGE = 20
    """disk full or read-only"""
    MEMORY = 21
    """out of memory"""
    CAPABILITY = 22
    """the machine or the installation lacks something"""
    INTERRUPTED = 130
    """stopped by Ctrl-C; the same command goes on"""
    BROKEN_PIPE = 141
    """the reader of stdout left"""
    TERMINATED = 143
    """stopped by SIGTERM; the same command goes on"""


class DcdmError(Exception):
    """A failure the user can act on.

    message: what failed, the value and the rule. hint: the command or edit that fixes it. file: the file at fault.
    figures: what the message says in numbers, for `--json`, by name.
    """

    code = ExitCode.FAILED

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        file: str | Path | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.figures = dict(figures or {})
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

    @classmethod
    def by(cls, signal_name: str, saved: str) -> InterruptedRunError:
        """saved: says what is kept."""
        again = "run the same command again to continue"
        return cls(f"stopped by {signal_name}; {saved}", again, signal_name=signal_name)
