"""The difficulty atlas: per class, what the generator makes of each difficulty, beside real images, as one HTML page.

Not from the paper, which shows such grids in its Figures 1 and 5. Pictures are stored small and encoded once; the page
is written class by class, and browsers draw only the classes in sight, so that a thousand of them stay usable.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcdm_cli.files import atomic_path
from dcdm_cli.reports import figure_style
from dcdm_cli.reports.figure_style import INK
from dcdm_cli.reports.formatting import NOTHING
from dcdm_cli.reports.plots import GridRow, image_grid
from dcdm_cli.reports.templates import template

SIDE = 96  # pixels of a stored picture at most
CLASSES_PER_PNG = 6
MOST_IN_CHART = 40


@dataclass(frozen=True)
class Tile:
    """A small picture, encoded, and the one or two short lines below it."""

    picture: bytes
    caption: str
    note: str = ""

    @classmethod
    def of(cls, image: Image.Image, caption: str, note: str = "") -> Tile:
        """Small pictures are kept pixel for pixel; larger ones are reduced to `SIDE`."""
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        tiny = max(small.size) <= SIDE // 2
        small.save(stream, "WEBP", lossless=tiny, quality=70, method=2)
        return cls(stream.getvalue(), caption, note)

    @property
    def data(self) -> str:
        return base64.b64encode(self.picture).decode("ascii")

    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.picture)).convert("RGB")


@dataclass(frozen=True)
class Strip:
    """One row of pictures with what it shows."""

    title: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class ClassEntry:
    """sentences: what moves with difficulty; correlations: factor -> rank correlation with it, None = not known.
    groups: typical pictures of images that look alike, hardest group first."""

    name: str
    difficulty: float | None
    strips: Sequence[Strip]
    sentences: Sequence[str] = ()
    correlations: Mapping[str, float | None] = field(default_factory=dict)
    groups: Sequence[Strip] = ()


def write_atlas(
    path: Path, title: str, entries: Iterable[ClassEntry], about: Sequence[str], names: Sequence[str]
) -> Path:
    """names: the classes in order, for the index; entries may be made while the page is written."""
    stream = template("atlas.html.j2").stream(title=title, entries=entries, about=about, names=list(enumerate(names)))
    stream.enable_buffering(64)  # a template gives its text in pieces of a few bytes
    with atomic_path(path) as part:
        stream.dump(str(part), encoding="utf-8")
    return path


def write_grids(folder: Path, entries: Sequence[ClassEntry]) -> list[Path]:
    """The same pictures as PNG files, `CLASSES_PER_PNG` classes each."""
    made = []
    for start in range(0, len(entries), CLASSES_PER_PNG):
        rows = [row for entry in entries[start : start + CLASSES_PER_PNG] for row in _grid_rows(entry)]
        last = min(start + CLASSES_PER_PNG, len(entries))
        title = f"Difficulty atlas, classes {start + 1} to {last} of {len(entries)}"
        made.append(image_grid(folder / f"atlas-{start // CLASSES_PER_PNG:03d}.png", rows, title))
    return made


@figure_style.own_look()
def factor_chart(path: Path, entries: Sequence[ClassEntry]) -> Path:
    """Rank correlation of every factor with difficulty, a row per class; at most MOST_IN_CHART classes."""
    shown = [entry for entry in entries if any(v is not None for v in entry.correlations.values())][:MOST_IN_CHART]
    factors = list(shown[0].correlations) if shown else []
    # NaN: such a cell gets no colour.
    values = np.array([[np.nan if (v := e.correlations[f]) is None else v for f in factors] for e in shown], float)
    figure = figure_style.figure(2.6 + 0.9 * max(3, len(factors)), 1.5 + 0.32 * max(2, len(shown)))
    axes = figure.add_subplot()
    figure_style.style(axes, "What moves as images get harder?", "", "")
    if shown:
        # all of the scale: a colour means the same in every chart
        drawn = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_xticks(range(len(factors)), factors)
        axes.set_yticks(range(len(shown)), [figure_style.label(entry.name, 20) for entry in shown])
        axes.grid(visible=False)
        _numbers(axes, values)
        bar = figure.colorbar(drawn)
        bar.set_label("rank correlation with difficulty", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8.5, colors=INK)
    return figure_style.save(figure, path)


def _grid_rows(entry: ClassEntry) -> list[GridRow]:
    """The generated strips between the two easiest and the two hardest real images of the class."""
    easiest, *made, hardest = entry.strips  # in the order in which `stages/atlas.py` makes them
    rows = []
    for number, strip in enumerate(made):
        ends = (easiest.tiles[:2], hardest.tiles[-2:]) if number == 0 else ((), ())
        tiles = [*_padded(ends[0]), *strip.tiles, *_padded(ends[1])]
        title = f"{entry.name}: {strip.title}" if number == 0 else strip.title
        rows.append(GridRow(title, [t.image() for t in tiles], [t.caption for t in tiles]))
    return rows


def _padded(tiles: Sequence[Tile]) -> list[Tile]:
    # so that generated strips of all classes stand in the same columns
    return [*tiles, *[Tile.of(Image.new("RGB", (SIDE, SIDE), "white"), "")] * (2 - len(tiles))]


def _numbers(axes: Any, values: np.ndarray) -> None:
    for (y, x), value in np.ndenumerate(values):
        # the ends of the scale are dark
        text, color = (f"{value:+.2f}", "white" if abs(value) > 0.6 else INK) if np.isfinite(value) else (NOTHING, INK)
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
