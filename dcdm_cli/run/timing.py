"""What a piece of work takes in seconds and energy, over all attempts at it: one that is stopped leaves what it took in
a file, and the next attempt at the same work adds its own. Of an attempt that was killed nothing is known.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdm_cli.errors import DcdmError
from dcdm_cli.files import write_json
from dcdm_cli.gate import Amount, Word, read_document
from dcdm_cli.run.energy import energy_since, read_energy
from dcdm_cli.run.one_off import OneOff, OneOffCosts, collected


class Attempt:
    """seconds, energy_wh (None = unknown) and one_off (by name) include those of earlier attempts."""

    def __init__(self, file: Path, key: str) -> None:
        """key: what the work is; attempts at other work do not count. One that is forced goes on like any other."""
        self._file, self._key = file, key
        earlier = _read(file, key)
        self.seconds, self.energy_wh = earlier.seconds, earlier.energy_wh
        self.one_off = OneOffCosts(dict(earlier.one_off))

    @contextmanager
    def measured(self) -> Iterator[None]:
        clock, energy = time.monotonic(), read_energy()
        with collected() as found:
            try:
                yield
            except BaseException:  # an interrupt too: stopped attempts are what is counted
                self._add(clock, energy, found)
                self._leave()
                raise
            self._add(clock, energy, found)

    def over(self) -> None:
        """The work is recorded; no later attempt may count these again."""
        self._file.unlink(missing_ok=True)

    def _add(self, clock: float, energy: Any, found: OneOffCosts) -> None:
        self.seconds += time.monotonic() - clock
        spent = energy_since(energy)
        # of what is unknown in one attempt, the sum is
        self.energy_wh = None if spent is None or self.energy_wh is None else round(self.energy_wh + spent, 3)
        for name, seconds in found.seconds().items():
            self.one_off.add(name, seconds)

    def _leave(self) -> None:
        """A full disk is what is to be told then, not this."""
        spent = {"seconds": self.seconds, "energy_wh": self.energy_wh, "one_off": self.one_off.seconds()}
        try:
            write_json(self._file, {"of": self._key, **spent})
        except Exception:
            return


@dataclass(frozen=True)
class _Earlier:
    """<stage>.stopped.json: what attempts at the work `of` took so far."""

    of: Word
    seconds: Amount = 0.0
    energy_wh: Amount | None = 0.0
    one_off: OneOff = field(default_factory=dict)


def stopped_seconds(file: Path) -> float | None:
    """What stopped attempts at a stage took, whatever their work was; None where there were none."""
    found = _left(file)
    return None if found is None else round(found.seconds, 1)


def _read(file: Path, key: str) -> _Earlier:
    """Nothing where the file speaks of other work."""
    found = _left(file)
    return found if found is not None and found.of == key else _Earlier(key)


def _left(file: Path) -> _Earlier | None:
    """None where the file is damaged: it only adds to figures."""
    try:
        return read_document(file, _Earlier, "")
    except (OSError, DcdmError):
        return None
