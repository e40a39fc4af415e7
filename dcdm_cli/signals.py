"""First SIGINT, SIGTERM or SIGHUP: finish the current unit of work, save, exit 130 or 143. Second: stop at once.

Before anybody has asked, and while modules are being imported, there is no unit of work to finish: the first one stops
at once. So it does in `stopped_at_once`. While the program ends already, there is nothing left to stop: what it has to
say is said and its exit code stays, unless somebody asks twice more.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dcdm_cli.errors import InterruptedRunError

_asked: list[str] = []
_at_once: list[str] = []
_late: list[str] = []
_somebody_asks = [False]
_raised = [False]
ending = [False]  # set without a call: Python looks for signals at calls
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_IMPORTING = "<frozen importlib._bootstrap>"


class StopNow(KeyboardInterrupt):
    """A kind of its own: where a plain KeyboardInterrupt has passed through the text of an `exec`, as data classes have
    it, Python ends with SIGINT in the end, whatever exit code was meant."""


def install_handlers(say: Callable[[str], None], end: Callable[[], None] = lambda: None) -> None:
    """say: told once, at the first signal, what happens next. end: ends the process where a module is being imported:
    native ones abort when they are interrupted, and some libraries make an error of their own of it.

    A signal that whoever started us wants ignored stays ignored: `nohup`, background jobs of scripts.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        again, name = bool(_asked), signal.Signals(number).name
        if ending[0]:
            _late.append(name)
            # Not raised: it would end what is being said with a traceback, and with another code.
            return os._exit(InterruptedRunError.by(name, "").code) if len(_late) > 1 else None
        _asked.append(name)
        importing = _is_importing(frame)
        if importing:
            end()
        if again or importing or _at_once or not _somebody_asks[0]:
            _raised[0] = True
            raise StopNow
        say(f"{name}: finishing the current unit of work; once more to stop now")

    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):  # Windows lacks some
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    ending[0] = _raised[0] = False
    sys.unraisablehook = _unless_stopped(sys.unraisablehook)


def _unless_stopped(tell: Callable[[Any], None]) -> Callable[[Any], None]:
    """A signal that comes while something is being destroyed, as when the process ends already, is nobody's error."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, StopNow):
            tell(unraisable)

    return hook


def asked_to_stop() -> str | None:
    """Name of the newest signal that asked, or None."""
    _somebody_asks[0] = True  # from now on a signal can wait for the next question
    return _asked[-1] if _asked else None


def was_interrupted() -> bool:
    """Whether `StopNow` was raised: an error that arrives then may be what a library has made of it."""
    return _raised[0]


@contextmanager
def stopped_at_once(saved: str) -> Iterator[None]:
    """For work that asks nobody for many seconds, such as one call of a library, and that may end anywhere: a kill
    costs no more. The first signal ends it with InterruptedRunError. saved: says what is kept."""
    _at_once.append(saved)
    try:
        yield
    except KeyboardInterrupt:
        name = asked_to_stop()
        if name is None:  # not by a handler of ours
            raise
        raise InterruptedRunError.by(name, saved) from None
    finally:
        _at_once.pop()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported somewhere below the frame that was interrupted."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
