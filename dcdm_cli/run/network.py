"""The network: asked once per process whether the hub answers, within one budget of seconds; then it is known.

Libraries ask file by file, each with waits and retries of its own: a network that swallows packets would cost minutes
before anything is said. What is in the cache is used all the same where the hub does not answer. A hub that falls
silent later is given up after as many seconds without an answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = "_DCDM_NETWORK_SECONDS"  # the setting as a session has it; workers inherit it
DEFAULT_SECONDS = 20.0
TRIES = 8  # a library asks for the rest of a file so often at most, pauses included, before it gives up
CLIENTS = ("httpx", "httpx2", "requests", "urllib3")  # packages; which one huggingface_hub uses depends on its version
_failures: list[str | None] = []  # what asking came to, once it was done
_loading: list[str] = []  # what is being loaded; an upload may well wait longer for its answer
_unanswered: list[float] = []  # when the first request since the last answer was sent


@contextmanager
def from_hub(place: str | Path) -> Iterator[None]:
    """Around a library's loading of `place`, a hub id or a local path. Where the hub does not answer within the budget,
    libraries are told to be offline from then on. Raises ConnectionError, an OSError, for what the hub's client raises.
    """
    reach_hub(place)
    _loading.append(str(place))
    try:
        yield
    except Exception as error:
        # an OSError is what callers know already; the rest is no network's
        if isinstance(error, OSError) or not _is_of_client(error):
            raise
        raise ConnectionError(_told(f"{type(error).__name__}: {error}")) from error
    finally:
        _loading.pop()


def reach_hub(place: str | Path) -> None:
    """Once per process, before the first that is no local path."""
    _unanswered.clear()  # what happens between two loads is no silence
    if _failures or os.path.exists(place):
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return  # the user says so: nobody is asked
    seconds = budget()
    failure = within(seconds, lambda: ask_hub(seconds))
    if failure:
        _go_offline(failure)
    else:
        _failures.append(None)  # it answers: it is not asked again
        _limit_silence(seconds)


def _go_offline(failure: str) -> None:
    from huggingface_hub import constants

    _failures[:] = [_told(failure)]
    # the variable was read when the library was imported; this is what it asks from then on
    constants.HF_HUB_OFFLINE = True


def _told(failure: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}: {failure} (network_seconds)"


def _is_of_client(error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] in CLIENTS for kind in type(error).__mro__)


def _limit_silence(seconds: float) -> None:
    """The client repeats a request that found no answer, after longer pauses and with more patience: no more once that
    has taken so many seconds. Versions of huggingface_hub before 1.0 have no such hooks, and less patience."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    # min: a limit of the user's own that is lower stays.
    constants.HF_HUB_DOWNLOAD_TIMEOUT = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, max(1, round(seconds / TRIES)))
    hooks = getattr(get_session(), "event_hooks", None)
    if hooks is None or _on_request in hooks["request"]:
        return
    hooks["request"].append(_on_request)
    hooks["response"].append(_on_response)


def _on_request(request: Any) -> None:
    if not _loading:
        return
    _unanswered[:] = _unanswered or [time.monotonic()]
    left = budget() - (time.monotonic() - _unanswered[0])
    if left <= 0:
        _go_offline(f"no answer within {budget():g} s")
        raise ConnectionError(_failures[0])
    patience = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
    # None: the caller sets no limit
    request.extensions["timeout"] = {what: min(given or left, left) for what, given in patience.items()}


def _on_response(_: object) -> None:
    _unanswered.clear()


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

    # daemon: the process must be able to end while a name server still says nothing
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} s"
