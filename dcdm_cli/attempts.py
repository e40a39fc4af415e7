"""What a piece of work takes in seconds and energy, over all attempts at it: one that is stopped leaves what it took in
a file, and the next attempt at the same work adds its own. Of an attempt that was killed nothing is known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcdm_cli import apart
from dcdm_cli.energy import energy_since, read_energy
from dcdm_cli.files import write_json


class Attempt:
    """seconds, energy_wh (None = unknown) and apart (`apart.py`, by name) include those of earlier attempts."""

    def __init__(self, file: Path, key: str) -> None:
        """key: what the work is; attempts at other work do not count. One that is forced goes on like any other."""
        self._file, self._key = file, key
        earlier = _read(file, key)
        self.seconds: float = earlier.get("seconds", 0.0)
        self.energy_wh: float | None = earlier.get("energy_wh", 0.0)
        self.apart = apart.Apart(dict(earlier.get("apart", {})))

    @contextmanager
    def measured(self) -> Iterator[None]:
        clock, energy = time.monotonic(), read_energy()
        with apart.collected() as found:
            try:
                yield
            except BaseException:
                self._add(clock, energy, found)
                self._leave()
                raise
            self._add(clock, energy, found)

    def over(self) -> None:
        """The work is recorded; no later attempt may count these again."""
        self._file.unlink(missing_ok=True)

    def _add(self, clock: float, energy: Any, found: apart.Apart) -> None:
        self.seconds += time.monotonic() - clock
        spent = energy_since(energy)
        self.energy_wh = None if spent is None or self.energy_wh is None else round(self.energy_wh + spent, 3)
        for name, seconds in found.seconds().items():
            self.apart.add(name, seconds)

    def _leave(self) -> None:
        """A full disk is what is to be told then, not this."""
        spent = {"seconds": self.seconds, "energy_wh": self.energy_wh, "apart": self.apart.seconds()}
        try:
            write_json(self._file, {"of": self._key, **spent})
        except Exception:
            return


def _read(file: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("of") == key else {}
