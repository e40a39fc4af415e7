"""First SIGINT, SIGTERM or SIGHUP: finish the current unit of work, save, exit 130 or 143. Second: stop at once.

While modules are being imported there is no unit of work to finish, and nobody who asks: the first one stops at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_asked: list[str] = []
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_IMPORTING = "<frozen importlib._bootstrap>"


def install_handlers(say: Callable[[str], None]) -> None:
    """say: told once, at the first signal, what happens next.

    A signal that whoever started us wants ignored stays ignored: `nohup`, background jobs of scripts.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        again, name = bool(_asked), signal.Signals(number).name
        _asked.append(name)
        if again or _is_importing(frame):
            raise KeyboardInterrupt
        say(f"{name}: finishing the current unit of work; once more to stop now")

    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def asked_to_stop() -> str | None:
    """Name of the newest signal that asked, or None."""
    return _asked[-1] if _asked else None


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported somewhere below the frame that was interrupted."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
