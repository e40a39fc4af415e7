"""How fast counted work goes and how long it will still take, from what has been measured so far."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0  # the rate is that of the last minute: warm-up and a slow start do not stay in it
TICK_S = 0.1
FEWEST_S = 3.0  # less than this measures nothing
LONG_S = 120.0  # what takes longer is announced

# How one unit of a piece of work is called, where it is not an image.
UNITS = {
    "fine-tuning": "it", "training classifier": "it", "training the judge": "it", "cross-fitting": "it",
    "what is hard now": "it", "downstream classifiers": "classifiers", "encoding captions": "captions",
}  # fmt: skip


def duration(seconds: float) -> str:
    """Two units at most: '48 s', '12 min 5 s', '3 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if count]
    return " ".join(parts[:2])


def estimated(seconds: float) -> str:
    """For estimates, which know no seconds beyond a minute: '40 s', '12 min', '3 h 10 min'."""
    return duration(60 * round(seconds / 60)) if seconds >= 90 else f"{max(1, round(seconds))} s"


@dataclass
class Pace:
    """One piece of work. seen: (time, done) of the reports in the window, oldest first."""

    what: str
    seen: deque[tuple[float, int]] = field(default_factory=deque)
    announced: bool = False

    def see(self, done: int, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        if self.seen and done < self.seen[-1][1]:  # it was begun anew
            self.seen.clear()
        if len(self.seen) > 1 and now - self.seen[-2][0] < TICK_S:  # a million reports are not kept
            self.seen.pop()
        self.seen.append((now, done))
        # the newest report older than the window stays, or the rate would be over less
        while len(self.seen) > 2 and now - self.seen[1][0] > WINDOW_S:
            self.seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second; None while nothing is known."""
        if len(self.seen) < 2:
            return None
        seconds, units = self.seen[-1][0] - self.seen[0][0], self.seen[-1][1] - self.seen[0][1]
        return units / seconds if seconds > 0 and units else None

    @property
    def measured(self) -> float | None:
        """The rate once it rests on enough seconds to be told; None before."""
        return self.rate if self._is_measured() else None

    def left(self, total: int) -> float | None:
        """Seconds to go; None where that is not known."""
        rate = self.rate
        return (total - self.seen[-1][1]) / rate if rate and 0 < self.seen[-1][1] < total else None

    def line(self, done: int, total: int, detail: str = "") -> str:
        """'fine-tuning: 300/5000, 2.1 it/s, loss 0.12, 37 min left', with what of it is known."""
        parts = [f"{self.what}: {done}/{total}" if total else f"{self.what}: {done}", self.speed(), detail]
        left = self.left(total) if total else None
        return ", ".join(part for part in (*parts, f"{estimated(left)} left" if left is not None else "") if part)

    def speed(self) -> str:
        """'2.1 it/s', or below one a minute '4.2 min/classifier'; '' while nothing is known."""
        rate, unit = self.measured, UNITS.get(self.what, "images")
        if rate is None:
            return ""
        if rate < 1 / 60:
            return f"{estimated(1 / rate)} per {unit.removesuffix('s')}"
        return f"{rate:.3g} {unit}/s" if rate < 1000 else f"{rate:,.0f} {unit}/s"

    def announcement(self, total: int) -> str:
        """Once, for work that takes longer than two minutes: what it is and how long it takes; else ''."""
        left = self.left(total) if total else None
        if self.announced or left is None or not self._is_measured():
            return ""
        self.announced = True
        if left < LONG_S:
            return ""
        end = time.strftime("%H:%M" if left < 12 * 3600 else "%a %H:%M", time.localtime(time.time() + left))
        unit = UNITS.get(self.what, "images")
        unit = "steps" if unit == "it" else unit
        todo = total - self.seen[-1][1]
        return f"{self.what}: {todo:,} {unit} to go take about {estimated(left)}, until {end} ({self.speed()})"

    def _is_measured(self) -> bool:
        return len(self.seen) >= 2 and self.seen[-1][0] - self.seen[0][0] >= FEWEST_S
