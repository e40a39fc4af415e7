"""The numbers of every training step: a CSV file that can be watched while it grows, and trackers of other projects."""

from __future__ import annotations

import csv
import importlib.util
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcdm_cli.errors import CapabilityError
from dcdm_cli.files import storage_errors, unshare, write_text

COLUMNS = ("step", "loss", "lr", "encoder_lr", "seconds")
EVERY_S = 2.0  # between writes: whoever watches need not wait, and the disk is left alone


class StepLog:
    """Lines of `COLUMNS`; seconds: since this attempt at the training began. A resumed training goes on in the same
    file: steps that are made again replace the lines they had."""

    def __init__(self, file: Path) -> None:
        self.file, self._lines, self._begun = file, list[str](), time.monotonic()
        self._written, self._fresh = 0.0, True

    def add(self, numbers: Mapping[str, float]) -> None:
        """numbers: step, loss, lr, encoder_lr. Raises StorageError."""
        # only now is it known where this attempt begins: at the first step, or at a checkpoint
        if self._fresh:
            self._keep_until(int(numbers["step"]))
        seconds = round(time.monotonic() - self._begun, 3)
        row = [int(numbers["step"]), *(f"{numbers[name]:.6g}" for name in COLUMNS[1:-1]), seconds]
        self._lines.append(_line(row))
        if time.monotonic() - self._written > EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Writes what has come since the last time, whole lines at once."""
        if not self._lines:
            return
        with storage_errors(self.file):
            unshare(self.file)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write("".join(self._lines))
        self._lines.clear()
        self._written = time.monotonic()

    def _keep_until(self, step: int) -> None:
        self._fresh = False
        # people may open and save it: what is no line of ours is dropped
        found = self.file.read_text("utf-8", "replace").splitlines()[1:] if self.file.is_file() else []
        kept = [line for line in found if (of := _step_of(line)) is not None and of < step]
        write_text(self.file, _line(COLUMNS) + "".join(line + "\n" for line in kept))


def _step_of(line: str) -> int | None:
    """None for a line that is not whole, by its commas: a killed process may have left half of one."""
    first = line.split(",")[0]
    return int(first) if line.count(",") == len(COLUMNS) - 1 and first.isdecimal() else None


class Tracker:
    """accelerate's tracker of that name. Opened with the first numbers: by then accelerate knows its device."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Raises CapabilityError when the package of that name is not installed."""
        if importlib.util.find_spec(name) is None:
            raise CapabilityError(f"--log-with {name} needs the package {name}", f"pip install {name}")
        self._name, self._folder, self._settings = name, folder, settings
        self._opened: Any = None

    def add(self, numbers: Mapping[str, float]) -> None:
        if self._opened is None:
            self._opened = self._open()
        values = {name: float(value) for name, value in numbers.items() if name != "step"}
        self._opened.log(values, step=int(numbers["step"]))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.finish()

    def _open(self) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind: Any = LOGGER_TYPE_TO_CLASS[self._name]
        self._folder.mkdir(parents=True, exist_ok=True)
        where = {"logging_dir": str(self._folder)} if kind.requires_logging_directory else {}
        tracker = kind("dcdm", **where)
        if hasattr(tracker, "start"):  # older versions of accelerate open it when it is made
            tracker.start()
        # TensorBoard takes neither tables nor None for a setting
        plain = {key: value for key, value in self._settings.items() if isinstance(value, (int, float, str, bool))}
        tracker.store_init_configuration(plain)
        return tracker


def _line(cells: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()
