"""Seconds that do not grow with the number of images: loading models, building engines, and what the first batch takes
beyond its share.

Whoever spends them says so here; whoever records a stage collects them. There is one collection at a time per process,
and a stage inside a stage counts for both. Worker processes keep theirs to themselves: of those nothing is known.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AliasChoices, Field

from dcdm_cli.gate import Finite

LOAD, WARMUP, BUILD = "load_seconds", "warmup_seconds", "build_seconds"
# How records keep them; earlier releases called them "apart".
OneOff = Annotated[dict[str, Finite], Field(validation_alias=AliasChoices("one_off", "apart"))]
FEWEST = 3  # batches of one size from which the first can be compared with the others


@dataclass
class OneOffCosts:
    """known: seconds by name. engines: for each one opened, (seconds, images) of its batches in their order."""

    known: dict[str, float] = field(default_factory=dict)
    engines: list[list[tuple[float, int]]] = field(default_factory=list)
    loading: bool = False

    def add(self, name: str, seconds: float) -> None:
        self.known[name] = self.known.get(name, 0.0) + seconds

    def include(self, inner: OneOffCosts) -> None:
        for name, seconds in inner.known.items():
            self.add(name, seconds)
        self.engines += inner.engines

    def seconds(self) -> dict[str, float]:
        """By name, as far as they are known."""
        warmups = [seconds for batches in self.engines if (seconds := _warmup(batches)) is not None]
        whole = self.known | ({WARMUP: sum(warmups)} if warmups else {})
        return {name: round(seconds, 3) for name, seconds in whole.items()}


_collecting = OneOffCosts()


@contextmanager
def collected() -> Iterator[OneOffCosts]:
    """What is spent inside. The collection around it gets it too, at the end."""
    global _collecting
    outer, inner = _collecting, OneOffCosts()
    inner.loading = outer.loading  # what is loaded inside of a loading counts there, whoever collects in between
    _collecting = inner
    try:
        yield inner
    finally:
        _collecting = outer
        outer.include(inner)


@contextmanager
def loading() -> Iterator[None]:
    """Around the loading of a model; what is loaded inside of it counts once."""
    here, clock = _collecting, time.monotonic()
    outermost, here.loading = not here.loading, True
    try:
        yield
    finally:
        if outermost:
            here.loading = False
            here.add(LOAD, time.monotonic() - clock)


def built(seconds: float) -> None:
    """An engine was built."""
    _collecting.add(BUILD, seconds)


def opened() -> None:
    """A new engine: its first batch warms it up."""
    _collecting.engines.append([])


def rendered(seconds: float, images: int) -> None:
    """A batch of the engine that was opened last."""
    if _collecting.engines:
        _collecting.engines[-1].append((seconds, images))


def _warmup(batches: list[tuple[float, int]]) -> float | None:
    """None with too few batches of the first one's size; redraws come in smaller ones."""
    alike = [seconds for seconds, images in batches if images == batches[0][1]]
    return max(0.0, alike[0] - statistics.median(alike[1:])) if len(alike) >= FEWEST else None
