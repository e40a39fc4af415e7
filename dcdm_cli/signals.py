"""First SIGINT or SIGTERM: finish the current unit of work, save, exit 130 or 143. Second: stop at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_asked: list[str] = []


def install_handlers(say: Callable[[str], None]) -> None:
    """say: told once, at the first signal, what happens next."""

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if _asked:
            raise KeyboardInterrupt
        _asked.append(name)
        say(f"{name}: finishing the current unit of work; once more to stop now")

    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, handle)


def asked_to_stop() -> str | None:
    """Name of the signal that asked, or None."""
    return _asked[0] if _asked else None
