"""The network: asked once per process whether the hub answers, within one budget of seconds; then it is known.

Libraries ask file by file, each with waits and retries of its own: a network that swallows packets would cost minutes
before anything is said. What is in the cache is used all the same where the hub does not answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

SECONDS = "_DCDM_NETWORK_SECONDS"  # the setting as a session has it; workers inherit it
DEFAULT_SECONDS = 20.0
_failures: list[str | None] = []  # what asking came to, once it was done


def reach_hub(place: str | Path) -> None:
    """To be called before a library is handed `place`, a hub id or a local path. Where the hub does not answer within
    the budget, libraries are told to be offline from then on."""
    if _failures or os.path.exists(place):
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    seconds = budget()
    failure = within(seconds, lambda: ask_hub(seconds))
    _failures.append(f"{constants.ENDPOINT}: {failure} (network_seconds)" if failure else None)
    if failure:
        constants.HF_HUB_OFFLINE = True


def budget() -> float:
    """Seconds that all waiting for the network may take."""
    return float(os.environ.get(SECONDS) or DEFAULT_SECONDS)


def reason(error: Exception) -> str:
    """Why something could not be loaded, in one sentence: the network's failure where there was one."""
    failure = _failures[0] if _failures else None
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    first = line.partition(". ")[0].removesuffix(".")
    return f"it is not on this machine, and {failure}" if failure else first


def ask_hub(seconds: float) -> str:
    """Empty when the hub answers, whatever it says. Raises what the client raises."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=seconds)
    return ""


def within(seconds: float, work: Callable[[], str]) -> str:
    """What `work` returns, or that it took too long: a name server that does not answer has no limit of its own."""
    answer: list[str] = []

    def ask() -> None:
        try:
            answer.append(work())
        except Exception as error:
            answer.append(f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no reason'}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} s"
