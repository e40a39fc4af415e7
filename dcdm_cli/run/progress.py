"""What a long-running stage is given besides its data: a device, a way to report progress, a way to be stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dcdm_cli.errors import InterruptedRunError

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, how many there are (0: not known)


def silent(what: str, done: int, total: int) -> None:
    """Progress that goes nowhere."""


@dataclass(frozen=True)
class Job:
    """device: a torch device name. stop_signal: the signal that asked to stop, or None; polled between units.

    note: a line for the person watching; warn: one that is said to who wants to read little, too. detail: (what is
    being done, text) shown beside its progress, such as a loss. log: the numbers of a training step, kept in the run
    folder.
    """

    device: str = "cpu"
    progress: Progress = silent
    stop_signal: Callable[[], str | None] = lambda: None
    note: Callable[[str], None] = lambda message: None
    detail: Callable[[str, str], None] = lambda what, text: None
    log: Callable[[Mapping[str, float]], None] = lambda numbers: None
    warn: Callable[[str], None] = lambda message: None

    def stop_if_asked(self, saved: str) -> None:
        """Raises InterruptedRunError at a point where everything finished is saved. saved: says what."""
        name = self.stop_signal()
        if name:
            raise InterruptedRunError.by(name, saved)

    def stoppable(self, saved: str) -> Progress:
        """`progress` for work that has no other point to stop at: each report is one. saved: as above."""

        def report(what: str, done: int, total: int) -> None:
            self.progress(what, done, total)
            self.stop_if_asked(saved)

        return report
