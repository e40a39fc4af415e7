"""Figures of experiments, as PNG files: differences per arm, sweeps over difficulty and ratio, densities, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from dcdm_cli.reports import figure_style
from dcdm_cli.reports.experiment_tables import cell_name
from dcdm_cli.reports.figure_style import BLUE, GREEN, GREY, INK, ORANGE, PAPER, PURPLE, SKY, YELLOW
from dcdm_cli.reports.formatting import duration, known_bounds, number, verdict

LINES = (GREEN, PURPLE, SKY, YELLOW, GREY)
FOCUS = "dcdm"
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
VERDICTS = {"better": GREEN, "worse": ORANGE}
MOST_CLASSES = 20


@figure_style.own_look()
def differences(path: Path, document: Mapping[str, Any], against: str) -> Path:
    """Every arm minus `against`, in points, with its 95 % interval and verdict; one panel per cell."""
    cells = document["cells"]
    rows = [[pair for pair in cell["paired"] if pair["against"] == against] for cell in cells]
    height = sum(0.9 + 0.42 * len(pairs) for pairs in rows)
    figure = figure_style.figure(8.4, 0.7 + height)
    panels = figure.subplots(len(cells), 1, squeeze=False, height_ratios=[max(1, len(pairs)) for pairs in rows])[:, 0]
    bound = _bound(rows)
    for axes, cell, pairs in zip(panels, cells, rows, strict=True):
        for y, pair in enumerate(pairs):
            _difference(axes, y, pair)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(pairs)), [figure_style.label(pair["arm"], 26) for pair in pairs])
        axes.set(ylim=(len(pairs) - 0.4, -0.6), xlim=(-1.1 * bound, 2.4 * bound))  # room for words
        title = f"Accuracy minus that of {figure_style.label(against, 20)}"
        title += f": {figure_style.label(cell_name(document, cell), 60)}"
        figure_style.style(axes, title, "", "", grid="x")
    panels[-1].set_xlabel("points of accuracy, 95 % interval over paired seeds", fontsize=9, color=INK)
    return figure_style.save(figure, path)


@figure_style.own_look()
def difficulty_sweep(path: Path, document: Mapping[str, Any]) -> Path:
    """Accuracy over the realised mean difficulty of the arms, with the baseline as a band. First cell."""
    cell = document["cells"][0]
    swept = [arm for arm in cell["arms"] if arm.get("difficulty") and arm.get("set_realised_mean") is not None]
    figure = figure_style.figure(7.2, 4.4)
    axes = figure.add_subplot()
    _band(axes, next((arm for arm in cell["arms"] if arm["synthetic_images"] == 0), None))
    x = [arm["set_realised_mean"] for arm in swept]
    _line(axes, x, swept, ORANGE, "o", "with generated images")
    for place, arm in zip(x, swept, strict=True):
        axes.annotate(
            figure_style.label(arm["name"], 14), (place, 100 * arm["accuracy_mean"]), (0, 9),
            textcoords="offset points", ha="center", fontsize=8, color=INK, bbox=PAPER,
        )  # fmt: skip
    figure_style.style(axes, "Which difficulty helps?", "mean difficulty of the images that came out", "accuracy, %")
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")
    axes.margins(y=0.2)
    return figure_style.save(figure, path)


@figure_style.own_look()
def ratio_sweep(path: Path, document: Mapping[str, Any]) -> Path:
    """Accuracy over the number of extra images, a line per arm; what they cost is written under the ticks."""
    cells = sorted(document["cells"], key=lambda cell: cell["ratio"])
    figure = figure_style.figure(7.6, 5.2)
    axes = figure.add_subplot()
    names = [arm["name"] for arm in cells[0]["arms"]]
    swept = [name for name in names if _arm(cells[0], name)["synthetic_images"]]
    for place, name in enumerate(swept):
        color = ORANGE if name == FOCUS else LINES[place % len(LINES)]
        x = [i + 0.05 * (place - (len(swept) - 1) / 2) for i in range(len(cells))]  # intervals must not hide another
        _line(axes, x, [_arm(cell, name) for cell in cells], color, MARKERS[place % len(MARKERS)], name)
    _band(axes, next((arm for arm in cells[0]["arms"] if arm["synthetic_images"] == 0), None))
    axes.set_xticks(range(len(cells)), [_ratio_label(cell) for cell in cells])
    unit = next((arm["set_unit"] for cell in cells for arm in cell["arms"] if arm.get("set_unit")), "")
    spent = f", and the {unit.removesuffix('-hours')} time to generate them" if unit else ""
    below = f"extra images per real one{spent}"
    figure_style.style(axes, "How many images are needed?", below, "accuracy, %")
    axes.legend(frameon=False, fontsize=8.5)
    return figure_style.save(figure, path)


@figure_style.own_look()
def densities(path: Path, document: Mapping[str, Any]) -> Path:
    """Kernel density of realised difficulty, a line per kind of image (the paper's Figure 2)."""
    figure = figure_style.figure(7.6, 4.2)
    axes = figure.add_subplot()
    top = 0.0
    colors = {"real": BLUE, "dcdm": ORANGE}
    spare = iter([GREEN, PURPLE, SKY, YELLOW, GREY] * 4)  # arms may be more than colours
    for name, part in document["densities"].items():
        color = colors.get(name) or next(spare)
        mean = f"{figure_style.label(name, 24)}: mean {number(part['mean'])}, {part['n']} images"
        if part["curve"] is None:
            # all values are the same: they have no density
            axes.axvline(part["mean"] or 0, color=color, linewidth=2, label=mean)
            continue
        x, y = np.linspace(0, 1, len(part["curve"])), np.asarray(part["curve"])
        axes.plot(x, y, color=color, linewidth=2, label=mean)
        axes.fill_between(x, y, color=color, alpha=0.12, linewidth=0)
        top = max(top, float(np.sort(y)[-len(y) // 5]))
    figure_style.style(
        axes, "Where the images lie", "realised difficulty (0 easy, 1 hard)", "density (high peaks are cut off)"
    )
    axes.set(xlim=(0, 1), ylim=(0, max(1.0, 1.6 * top)))  # the peak of easy images would flatten all else
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    return figure_style.save(figure, path)


@figure_style.own_look()
def classes(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rank correlation and label agreement per class, hardest to steer on top; at most MOST_CLASSES."""
    shown = rows[:MOST_CLASSES]
    figure = figure_style.figure(7.6, 1.4 + 0.32 * max(1, len(shown)))
    axes = figure.add_subplot()
    for y, row in enumerate(shown):
        if row["spearman"] is not None:
            axes.plot([0, row["spearman"]], [y, y], color=ORANGE, linewidth=2)
            axes.plot(row["spearman"], y, "o", color=ORANGE, markersize=7, label="rank correlation" if y == 0 else None)
        if row["label_agreement"] is not None:
            own = "label agreement" if y == 0 else None
            axes.plot(row["label_agreement"], y, "s", color=BLUE, markersize=6, label=own)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(shown)), [figure_style.label(row["class"], 24) for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    low = min([0.0, *(row["spearman"] for row in shown if row["spearman"] is not None)])
    axes.set_xlim(low - 0.03, 1.05)
    more = f" ({len(shown)} of {len(rows)} classes)" if len(shown) < len(rows) else ""
    figure_style.style(axes, f"Which classes can be steered?{more}", "", "", grid="x")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    return figure_style.save(figure, path)


@figure_style.own_look()
def cost_bars(path: Path, cost: Mapping[str, Any]) -> Path:
    """Device hours per stage of making images."""
    stages = cost["stages"]
    figure = figure_style.figure(7.2, 1.3 + 0.42 * max(1, len(stages)))
    axes = figure.add_subplot()
    bars = axes.barh(
        [figure_style.label(s["stage"], 24) for s in stages], [s["hours"] for s in stages], color=BLUE, height=0.6
    )
    axes.bar_label(bars, [f"{s['hours']:.3g} {s['unit']}" for s in stages], padding=4, fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.28)
    figure_style.style(axes, "What the images cost", "device hours: seconds x devices / 3600", "", grid="x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure_style.save(figure, path)


def _difference(axes: Axes, y: int, pair: Mapping[str, Any]) -> None:
    color = VERDICTS.get(pair.get("verdict", ""), GREY)
    mean, known = 100 * pair["difference_mean"], known_bounds(pair["difference_ci95"])
    if known:
        axes.plot([100 * known[0], 100 * known[1]], [y, y], color=color, linewidth=3, solid_capstyle="butt")
    axes.plot([mean], [y], "D", color=color, markersize=7)
    axes.annotate(
        f"{mean:+.2f}  {verdict(pair)}", (1, y), (-4, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="center", fontsize=8, color=INK, bbox=PAPER,
    )  # fmt: skip


def _bound(rows: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """The farthest end of an interval, points."""
    ends = [abs(v) for pairs in rows for p in pairs for v in (p["difference_ci95"] or [p["difference_mean"]])]
    return 100 * max([*ends, 0.005])  # at least half a point: arms that are equal need an axis too


def _line(
    axes: Axes, x: Sequence[float] | range, arms: Sequence[Mapping[str, Any]], color: str, marker: str, name: str
) -> None:
    means = 100 * np.array([arm["accuracy_mean"] for arm in arms])
    axes.plot(list(x), means, color=color, marker=marker, linewidth=2, markersize=6, label=figure_style.label(name, 28))
    for place, arm in zip(x, arms, strict=True):
        if known := known_bounds(arm["accuracy_ci95"]):
            axes.plot([place, place], [100 * known[0], 100 * known[1]], color=color, linewidth=1.2, alpha=0.7)


def _band(axes: Axes, arm: Mapping[str, Any] | None) -> None:
    if arm is None:
        return
    axes.axhline(100 * arm["accuracy_mean"], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), label="real images only")
    if known := known_bounds(arm["accuracy_ci95"]):
        axes.axhspan(100 * known[0], 100 * known[1], color=GREY, alpha=0.12, linewidth=0)


def _arm(cell: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(arm for arm in cell["arms"] if arm["name"] == name)


def _ratio_label(cell: Mapping[str, Any]) -> str:
    spent = [(arm["name"], arm["set_hours"]) for arm in cell["arms"] if arm.get("set_hours") is not None]
    lines = [f"{figure_style.label(name, 12)} {duration(3600 * hours)}" for name, hours in spent]
    return "\n".join([f"{100 * cell['ratio']:g} %", *lines])
