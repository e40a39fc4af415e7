"""What all figures share: colours, axes, labels and the way a PNG is written.

Object-oriented matplotlib only: no pyplot, no backend choice, no global settings. Whoever makes a figure does it under
`own_look`.

Colours are Okabe and Ito's, which colour-blind readers can tell apart: where both appear, blue is real and orange
generated.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcdm_cli.files import atomic_path
from dcdm_cli.safe_text import show

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A8F98", "#22262B"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#E69F00"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # behind text that a line may cross
DPI = 120


@contextmanager
def own_look() -> Iterator[None]:
    """matplotlib's own settings while a figure is drawn and saved: without it a `matplotlibrc` in the folder one stands
    in, or in the home, would decide how reports look, and with `text.usetex` which programs run."""
    # not rcdefaults, which reads every style that is installed; the backend is the caller's, and none is used here
    own = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(own):  # pyright: ignore[reportArgumentType]
        yield


def figure(width: float, height: float) -> Figure:
    """inches"""
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def style(axes: Axes, title: str, xlabel: str, ylabel: str, grid: str = "y") -> None:
    """The look shared by all axes."""
    axes.set_title(title, loc="left", fontsize=11, weight="bold", color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5, length=3, color=GREY)
    axes.grid(axis=grid, color="#E3E6EA", linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def label(text: str, limit: int) -> str:
    """A name as plot text: shortened, escapes shown, `$` not read as mathematics."""
    plain = show(text)
    plain = plain if len(plain) <= limit else plain[: limit - 1] + "…"
    return plain.replace("$", r"\$")


def lines(text: str, letters: int, most: int = 4) -> str:
    """The same in at most so many lines of so many letters."""
    return textwrap.fill(show(text), letters, max_lines=most, placeholder=" …").replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as part, warnings.catch_warnings():
        # Class names in scripts that the bundled font lacks become boxes: not worth a warning per character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(part, format="png", facecolor="white")
    return path
