"""Figures are drawn and hold what they should; how they look is for eyes."""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dcdm_cli.reports import figure_style, plots


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_difficulty_histogram(classes, tmp_path):
    rng = np.random.default_rng(0)
    difficulty = rng.beta(0.3, 2, 200)
    difficulty[0] = np.nan
    names = ["$\\frac$ 猫 [/x]\x1b", *(f"class {i}" for i in range(1, classes))]
    path = plots.difficulty_histogram(tmp_path / "a" / "h.png", difficulty, rng.integers(0, classes, 200), names)
    assert size(path)[0] == pytest.approx(9 * figure_style.DPI)
    assert [p.name for p in path.parent.iterdir()] == ["h.png"]


def test_nothing_to_draw_is_no_error(tmp_path):
    size(plots.difficulty_histogram(tmp_path / "h.png", np.array([np.nan]), np.array([0]), ["cat"]))
    size(plots.frontier(tmp_path / "f.png", {}))
    size(plots.requested_vs_realised(tmp_path / "r.png", {"spearman": None, "targets": []}))
    size(plots.accuracy_bars(tmp_path / "a.png", {"test_images": 0, "arms": []}))
    size(plots.stage_seconds(tmp_path / "s.png", {}))
    size(plots.loss_curve(tmp_path / "l.png", [], []))
    size(plots.image_grid(tmp_path / "g.png", [], "empty"))


def test_a_figure_does_not_depend_on_the_folder_one_stands_in(tmp_path):
    draw = {name: lambda path: plots.stage_seconds(path, {"score": 2.0}) for name in ("plain", "elsewhere")}
    plain = draw["plain"](tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert draw["elsewhere"](tmp_path / "b.png").read_bytes() == plain
        assert matplotlib.rcParams["text.usetex"] is True  # the caller's own stay


def test_every_figure_is_drawn_with_our_own_look():
    folder = Path(figure_style.__file__).parent
    for file in (file for file in folder.glob("*.py") if file.name != "figure_style.py"):
        for one in ast.walk(ast.parse(file.read_text("utf-8"))):
            makes = [f"{part.func.value.id}.{part.func.attr}" for part in ast.walk(one)
                     if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute)
                     and isinstance(part.func.value, ast.Name)]  # fmt: skip
            if isinstance(one, ast.FunctionDef) and "figure_style.save" in makes:
                assert "figure_style.own_look()" in map(ast.unparse, one.decorator_list), f"{file.name}: {one.name}"


def test_the_grid_enlarges_by_whole_pixels(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    row = plots.GridRow("easy", [image, Image.new("RGB", (300, 200), "red")], ["0.10", "0.20"])
    path = plots.image_grid(tmp_path / "g.png", [row, plots.GridRow("[/x]$", [])], "digits")
    with Image.open(path) as grid:
        pixels = np.asarray(grid.convert("L"))
    tile = pixels[plots.HEADER : plots.HEADER + plots.TILE, plots.ROW_TITLE : plots.ROW_TITLE + plots.TILE]
    factor = plots.TILE // 8
    assert np.array_equal(tile, np.asarray(image).repeat(factor, 0).repeat(factor, 1))


def test_figures_of_the_metrics(metrics, tmp_path):
    adherence, seconds = metrics["adherence"], metrics["seconds"]
    fit = {"requested": [0, 0.5, 1], "realised": [0.05, 0.2, 0.7], "fitted": [0.05, 0.2, 0.7]}
    for row in adherence["targets"]:
        row["realised_std"] = 0.1
    for path in (
        plots.requested_vs_realised(tmp_path / "r.png", adherence, fit),
        plots.frontier(tmp_path / "f.png", adherence),
        plots.accuracy_bars(tmp_path / "a.png", metrics["downstream"]),
        plots.stage_seconds(tmp_path / "s.png", seconds),
    ):
        assert min(size(path)) > 100


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path):
    size(plots.loss_curve(tmp_path / "l.png", range(50), [float("nan"), float("inf"), *np.linspace(1, 0.1, 48)]))


def test_the_same_numbers_give_the_same_bytes(metrics, tmp_path):
    first = plots.frontier(tmp_path / "1.png", metrics["adherence"]).read_bytes()
    assert plots.frontier(tmp_path / "2.png", metrics["adherence"]).read_bytes() == first


def test_pyplot_is_not_touched():
    import subprocess
    import sys

    code = "import sys, dcdm_cli.reports.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_long_row_title_stays_left_of_the_images(tmp_path):
    white = Image.new("RGB", (96, 96), "white")
    title = "wire-haired Moscow watchdogs: generated, seed 1, and what more there is to say of them"
    path = plots.image_grid(tmp_path / "g.png", [plots.GridRow(title, [white])], "")
    with Image.open(path) as grid:
        row = np.asarray(grid.convert("L"))[plots.HEADER :]
    assert row[:, : plots.ROW_TITLE].min() < 100 and row[:, plots.ROW_TITLE :].min() == 255


def test_a_line_never_ends_within_an_escape():
    shown = figure_style.lines("x" * 17 + "$y$ and more words than three lines can hold, whatever they may say", 18, 3)
    assert all(len(line.replace("\\$", "$")) <= 18 for line in shown.split("\n")) and len(shown.split("\n")) == 3
    assert shown.count("$") == shown.count("\\$") > 0 and shown.endswith("…")
