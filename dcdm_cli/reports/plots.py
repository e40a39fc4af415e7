"""Figures of scores, adherence, accuracy and time, as PNG files. Every function takes plain numbers, writes one file
through a temporary name and returns its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from PIL import Image, ImageOps

from dcdm_cli.reports import figure_style
from dcdm_cli.reports.figure_style import BLUE, GREEN, GREY, INK, ORANGE, PAPER
from dcdm_cli.reports.formatting import duration, known_bounds, number, percent

BINS = np.linspace(0, 1, 21)
MAX_CLASSES = 12
TILE, GAP, ROW_TITLE, HEADER = 96, 8, 150, 44  # pixels
ROW_LETTERS = 18  # of a row's title in one line: they end before the first tile


@dataclass(frozen=True)
class GridRow:
    """One row of an image grid. captions: one short text per image, or none at all."""

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str] = field(default=())


@figure_style.own_look()
def difficulty_histogram(path: Path, difficulty: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Path:
    """Counts per difficulty, over all images and per class (the hardest MAX_CLASSES).

    difficulty: float [images] in [0, 1], NaN where unknown. labels: int [images].
    """
    difficulty, labels = np.asarray(difficulty, float), np.asarray(labels)
    scored = np.isfinite(difficulty) & (labels >= 0)
    difficulty, labels = difficulty[scored], labels[scored]
    shown = _hardest(difficulty, labels, len(class_names))
    rows = -(-len(shown) // 4)
    figure = figure_style.figure(9, 3.2 + 1.5 * rows)
    grid = figure.add_gridspec(rows + 1, 4, height_ratios=[1.9, *[1] * rows])
    overall = figure.add_subplot(grid[0, :])
    _histogram(overall, difficulty, BLUE)
    figure_style.style(overall, _histogram_title(difficulty), "difficulty (0 easy, 1 hard)", "images, log scale")
    panels = [figure.add_subplot(grid[1 + i // 4, i % 4]) for i in range(len(shown))]
    for i, (axes, label) in enumerate(zip(panels, shown, strict=True)):
        _class_panel(axes, difficulty[labels == label], class_names[label])
        axes.sharey(panels[0])
        axes.tick_params(labelleft=i % 4 == 0, labelbottom=i + 4 >= len(shown))
    which = (
        f"the {len(shown)} hardest of {len(class_names)} classes" if len(shown) < len(class_names) else "every class"
    )
    figure.supxlabel(f"Small panels: {which}, with its mean", fontsize=9, color=INK)
    return figure_style.save(figure, path)


@figure_style.own_look()
def image_grid(path: Path, rows: Sequence[GridRow], title: str) -> Path:
    """Images in rows, each in a tile of TILE pixels: small ones enlarged by whole factors, pixels kept square."""
    columns = max((len(row.images) for row in rows), default=1)
    line = TILE + GAP + (16 if any(row.captions for row in rows) else 0)
    margin = ROW_TITLE if any(row.title for row in rows) else GAP
    width = max(margin + columns * (TILE + GAP), 9 * len(title))  # no title is cut off: 9 pixels hold a letter
    height = HEADER + len(rows) * line
    # No layout engine, and pixels that are counted: `figimage` takes places in pixels of the figure.
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.text(
        GAP / width,
        1 - HEADER / 2 / height,
        figure_style.label(title, 200),
        va="center",
        fontsize=11,
        weight="bold",
        color=INK,
    )
    for i, row in enumerate(rows):
        top = height - HEADER - i * line
        figure.text(
            GAP / width,
            (top - TILE / 2) / height,
            figure_style.lines(row.title, ROW_LETTERS),
            va="center",
            fontsize=9,
            color=INK,
        )
        for j, image in enumerate(row.images):
            left = margin + j * (TILE + GAP)
            _place(figure, image, left, top)
            if j < len(row.captions):
                place = ((left + TILE / 2) / width, (top - TILE - 2) / height)
                figure.text(
                    *place, figure_style.label(row.captions[j], 16), ha="center", va="top", fontsize=7, color=INK
                )
    return figure_style.save(figure, path)


@figure_style.own_look()
def requested_vs_realised(
    path: Path, adherence: Mapping[str, Any], calibration: Mapping[str, Sequence[float]] | None = None
) -> Path:
    """Above: mean realised difficulty per target, against the diagonal. Below: share that keeps its label, if a
    judge has said it.

    adherence: that part of the metrics; a target may also hold `realised_std`. calibration: `requested` and `realised`
    of the probe and the `fitted` monotone map, drawn as what would come out without the correction.
    """
    judged = any(row["label_agreement"] is not None for row in adherence["targets"])
    figure = figure_style.figure(6.4, 7.2 if judged else 5.2)
    grid = figure.add_gridspec(2, 1, height_ratios=[2.6, 1]) if judged else figure.add_gridspec(1, 1)
    axes = figure.add_subplot(grid[0])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="exactly as asked", zorder=1)
    if known := known_bounds(adherence.get("reachable")):
        axes.axhspan(
            *known, color=GREEN, alpha=0.08, linewidth=0, label=f"reachable means {known[0]:.2f} to {known[1]:.2f}"
        )
    if calibration:
        axes.plot(
            calibration["requested"], calibration["realised"], "o", mfc="none", color=GREY, label="probe, uncorrected"
        )
        axes.plot(calibration["requested"], calibration["fitted"], color=GREY, linewidth=1.5, label="fit to the probe")
    _targets(axes, adherence["targets"])
    spearman = adherence.get("spearman")
    correlation = "" if spearman is None else f" Rank correlation {number(spearman)}"
    figure_style.style(axes, f"Does what was asked for come out?{correlation}", "", "realised difficulty")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="auto")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    if judged:
        axes.tick_params(labelbottom=False)
        _agreement_panel(figure.add_subplot(grid[1], sharex=axes), adherence["targets"])
    else:
        axes.set_xlabel("target difficulty", fontsize=9, color=INK)
    return figure_style.save(figure, path)


@figure_style.own_look()
def frontier(path: Path, adherence: Mapping[str, Any]) -> Path:
    """Label agreement of real and generated images per bin of realised difficulty, with the number of images below."""
    rows = adherence.get("frontier") or []
    figure = figure_style.figure(7.2, 4.6)
    axes = figure.add_subplot()
    for kind, color, marker in (("real", BLUE, "o"), ("generated", ORANGE, "s")):
        known = [
            (np.mean(row["bin"]), row[f"{kind}_agreement"]) for row in rows if row[f"{kind}_agreement"] is not None
        ]
        # two columns even where there is no point
        axes.plot(*np.reshape(known, (-1, 2)).T, marker=marker, color=color, linewidth=2, label=kind)
    figure_style.style(
        axes, "Hard or broken? Share of images that keep their label", "realised difficulty", "label agreement"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    _counts_below(axes, rows)
    return figure_style.save(figure, path)


@figure_style.own_look()
def accuracy_bars(path: Path, downstream: Mapping[str, Any]) -> Path:
    """Mean accuracy per training set with its 95 % interval, and every seed as a dot. The accuracy axis is zoomed."""
    arms = downstream["arms"]
    figure = figure_style.figure(7.2, 1.7 + 0.55 * len(arms))
    axes = figure.add_subplot()
    for y, arm in enumerate(arms):
        _arm(axes, y, arm, GREY if arm["synthetic_images"] == 0 else ORANGE)
    if arms:
        axes.axvline(100 * arms[0]["accuracy_mean"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(arms)), [_arm_label(arm) for arm in arms])
    axes.set_ylim(max(len(arms), 1) - 0.5, -0.5)
    low, high = axes.get_xlim()
    scale = f"accuracy on {downstream['test_images']} test images, %, zoomed to {low:.1f} to {high:.1f}"
    figure_style.style(axes, "Does it help? Accuracy with 95 % intervals, one dot per seed", scale, "", grid="x")
    return figure_style.save(figure, path)


@figure_style.own_look()
def stage_seconds(path: Path, seconds: Mapping[str, float]) -> Path:
    """Wall-clock time per stage, in the order of the pipeline."""
    stages, spent = list(seconds), list(seconds.values())
    figure = figure_style.figure(7.2, 1.3 + 0.42 * len(stages))
    axes = figure.add_subplot()
    bars = axes.barh([figure_style.label(stage, 24) for stage in stages], spent, color=BLUE, height=0.6)
    axes.bar_label(bars, [duration(value) for value in spent], padding=4, fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    figure_style.style(axes, f"Where the time went: {duration(sum(spent))} in all", "", "", grid="x")
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    return figure_style.save(figure, path)


@figure_style.own_look()
def loss_curve(path: Path, steps: Sequence[float], losses: Sequence[float]) -> Path:
    """Training loss per step, faint, and its running mean over a twentieth of the run; non-finite ones left out."""
    points = np.column_stack([np.asarray(steps, float), np.asarray(losses, float)])
    points = points[np.isfinite(points).all(axis=1)]
    figure = figure_style.figure(7.2, 3.6)
    axes = figure.add_subplot()
    axes.plot(*points.T, color=BLUE, alpha=0.3, linewidth=0.8)
    title = "Training loss"
    if len(points):
        window = max(1, len(points) // 20)
        smooth = np.convolve(points[:, 1], np.ones(window) / window, "valid")
        # of whole windows only: each mean stands in the middle of its own
        axes.plot(points[window // 2 :][: len(smooth), 0], smooth, color=BLUE, linewidth=2)
        axes.set_ylim(0, 1.1 * np.quantile(points[:, 1], 0.99))  # a few early spikes must not flatten the rest
        title = f"Training loss: running mean over {window} logged steps ends at {smooth[-1]:.3g}"
    figure_style.style(axes, title, "optimiser step", "loss")
    return figure_style.save(figure, path)


def _hardest(difficulty: np.ndarray, labels: np.ndarray, classes: int) -> list[int]:
    """All classes that have images in label order, or the MAX_CLASSES with the highest mean difficulty."""
    counts = np.bincount(labels, minlength=classes)
    means = np.bincount(labels, weights=difficulty, minlength=classes) / np.maximum(counts, 1)
    present = np.flatnonzero(counts)
    return np.sort(present[np.argsort(-means[present], kind="stable")[:MAX_CLASSES]]).tolist()


def _histogram(axes: Axes, difficulty: np.ndarray, color: str) -> None:
    axes.hist(difficulty, bins=BINS.tolist(), color=color, edgecolor="white", linewidth=0.6, log=len(difficulty) > 0)
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    if len(difficulty):
        axes.set_ylim(bottom=0.7)  # below 1: on a log scale the bar of a single image would have no height
        axes.axvline(float(difficulty.mean()), color=ORANGE, linewidth=1.5)


def _histogram_title(difficulty: np.ndarray) -> str:
    if not len(difficulty):
        return "No image has a difficulty"
    return (
        f"Difficulty of {len(difficulty)} images: mean {difficulty.mean():.2f} (orange line), "
        f"{percent(float((difficulty > 0.5).mean()))} above 0.5"
    )


def _class_panel(axes: Axes, difficulty: np.ndarray, name: str) -> None:
    _histogram(axes, difficulty, BLUE)
    figure_style.style(axes, "", "", "")
    axes.set_xticks([0, 0.5, 1])
    axes.set_title(f"{figure_style.label(name, 20)}: {difficulty.mean():.2f}", loc="left", fontsize=8.5, color=INK)


def _place(figure: Figure, image: Image.Image, left: int, top: int) -> None:
    """Puts an image in the middle of its tile, pixel for pixel."""
    rgb = image.convert("RGB")
    factor = TILE // max(rgb.size)
    if factor >= 1:
        tile = ImageOps.scale(rgb, factor, Image.Resampling.NEAREST)
    else:
        tile = ImageOps.contain(rgb, (TILE, TILE), Image.Resampling.LANCZOS)
    x, y = left + (TILE - tile.width) // 2, top - TILE + (TILE - tile.height) // 2
    figure.figimage(np.asarray(tile), x, y, origin="upper")


def _targets(axes: Axes, targets: Sequence[Mapping[str, Any]]) -> None:
    known = [row for row in targets if row["realised_mean"] is not None]
    x, y = [row["target"] for row in known], [row["realised_mean"] for row in known]
    if known and all(row.get("realised_std") is not None for row in known):
        spread = [row["realised_std"] for row in known]
        axes.errorbar(x, y, spread, fmt="none", ecolor=ORANGE, alpha=0.45, linewidth=5, label="± 1 standard deviation")
    axes.plot(x, y, "o-", color=ORANGE, linewidth=2, markersize=7, label="mean of the generated images")


def _agreement_panel(axes: Axes, targets: Sequence[Mapping[str, Any]]) -> None:
    known = [row for row in targets if row["label_agreement"] is not None]
    x, y = [row["target"] for row in known], [row["label_agreement"] for row in known]
    axes.plot(x, y, "s-", color=ORANGE, linewidth=2)
    figure_style.style(axes, "Does the judge still see the label?", "target difficulty", "label agreement")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _counts_below(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Numbers of images under the tick labels, as in a survival plot's risk table."""
    for line, (kind, color) in enumerate((("real", BLUE), ("generated", ORANGE))):
        options: dict[str, Any] = {"fontsize": 8, "color": color, "textcoords": "offset points", "va": "top"}
        y = -40 - 13 * line
        axes.annotate(f"n {kind}", (0, 0), (-8, y), xycoords=("axes fraction", "axes fraction"), ha="right", **options)
        for row in rows:
            x = float(np.mean(row["bin"]))
            axes.annotate(
                str(row[f"{kind}_n"]), (x, 0), (0, y), xycoords=("data", "axes fraction"), ha="center", **options
            )


def _arm(axes: Axes, y: int, arm: Mapping[str, Any], color: str) -> None:
    seeds = 100 * np.asarray(arm["accuracy"], float)
    mean = 100 * arm["accuracy_mean"]
    axes.plot(seeds, np.full(len(seeds), y + 0.18), "o", color=color, alpha=0.45, markersize=5, markeredgewidth=0)
    if known := known_bounds(arm["accuracy_ci95"]):
        axes.plot(100 * np.asarray(known), [y, y], color=color, linewidth=3, solid_capstyle="butt")
    axes.plot([mean], [y], "D", color=color, markersize=8)
    axes.annotate(
        f"{mean:.2f}", (mean, y), (0, 8), textcoords="offset points", ha="center", fontsize=8.5, color=INK, bbox=PAPER
    )


def _arm_label(arm: Mapping[str, Any]) -> str:
    made = arm["synthetic_images"]
    return f"{figure_style.label(arm['name'], 20)}\n{f'+ {made} images' if made else 'no extra images'}"
