"""How far fine-tuning went and why: the table of probed points, and what changes as training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dcdm_cli.reports import figure_style
from dcdm_cli.reports.figure_style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from dcdm_cli.reports.table import ResultTable

PANELS = (
    ("worth", "Hard and right: mean difficulty, lost labels counting 0"),
    ("labels", "Labels shown"),
    ("difficulty", "Mean difficulty"),
    ("copies", "Copies of training images"),
)
READ = (
    "* is the point that was taken: the most worth among those that keep their labels and copy little. scale: of the "
    "LoRA; guide: guidance by text/by difficulty; hard: mean difficulty; worth: the same, lost labels counting 0; "
    "label: share of images whose label shows; copy: share nearer to a training image than 99 % of unseen real ones; "
    "cover: share of unseen real images with a generated one near; rank: how far difficulty follows the request, 1 = "
    "in its order; ms: per image."
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)


def strength_table(strength: Mapping[str, Any], known: str = "") -> ResultTable:
    """A row per probed point; the chosen one is marked. known: a sentence on what the scorer of the images knows."""
    columns = ("steps", "scale", "guide", "worth", "hard", "label", "copy", "cover", "rank", "ms")
    rows = tuple(_row(point, number == strength["chosen"]) for number, point in enumerate(strength["points"]))
    title = (
        f"Strength of fine-tuning, {strength['images_per_point']} images per point, features: {strength['features']}"
    )
    return ResultTable(title, columns, rows, f"{READ} {known}".strip())


def _row(point: Mapping[str, Any], chosen: bool) -> tuple[str, ...]:
    return (
        f"{point['steps']}{' *' if chosen else ''}",
        f"{point['lora_scale']:g}",
        f"{point['text_guidance']:g}/{point['difficulty_guidance']:g}",
        f"{point['worth']:.2f}",
        f"{point['difficulty']:.2f}",
        f"{point['labels']:.0%}",
        f"{point['copies']:.1%}",
        f"{point['coverage']:.0%}",
        f"{point['correlation']:.2f}",
        f"{1000 * point['seconds_per_image']:.0f}",
    )


@figure_style.own_look()
def strength_curves(path: Path, strength: Mapping[str, Any]) -> Path:
    """Four panels over the steps, one line per scale and guidance; the chosen point is ringed."""
    points, chosen = strength["points"], strength["points"][strength["chosen"]]
    figure = figure_style.figure(9, 5.6)
    panels = figure.subplots(2, 2, sharex=True)
    lines = sorted({(p["lora_scale"], p["text_guidance"], p["difficulty_guidance"]) for p in points})
    for axes, (measure, title) in zip(panels.flat, PANELS, strict=True):
        for colour, line in zip(COLOURS * len(lines), lines, strict=False):
            _line(axes, [p for p in points if _of(p) == line], measure, colour)
        axes.scatter(chosen["steps"], chosen[measure], s=130, facecolors="none", edgecolors=INK, linewidths=1.6)
        axes.set_xscale("log")
        figure_style.style(axes, title, "", "")
    for axes in panels[-1]:
        axes.set_xlabel("optimiser steps (ring: chosen)", fontsize=9, color=INK)
    panels[0, 0].legend([f"scale {s:g}, guidance {t:g} / {d:g}" for s, t, d in lines], fontsize=8, frameon=False)
    steps = sorted({p["steps"] for p in points})
    panels[-1, 0].set_xticks(steps, [str(step) for step in steps])
    panels[-1, 0].minorticks_off()  # a log axis would name places between the steps
    return figure_style.save(figure, path)


def _of(point: Mapping[str, Any]) -> tuple[float, float, float]:
    return point["lora_scale"], point["text_guidance"], point["difficulty_guidance"]


def _line(axes: Axes, points: Sequence[Mapping[str, Any]], measure: str, colour: str) -> None:
    axes.plot([p["steps"] for p in points], [p[measure] for p in points], "o-", color=colour, markersize=4)
