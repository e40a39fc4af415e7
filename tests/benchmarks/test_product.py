"""bench_product.py: what is refused, counted and said; and, slowly, the whole of it on a run that learnt little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_product as bench
import numpy as np
import pytest
from bench_distilled import DISTILLED, GUIDED
from PIL import Image

from dcdm_cli.difficulty.verdict import Verdict
from dcdm_cli.generation.plan import PlanRow

TARGET = 0.5


def table(**ours: float) -> dict[str, dict[str, Any]]:
    def way(times: float, **more: Any) -> dict[str, Any]:
        facts = {"backend": "openvino", "calls": 3, "batch": 64, "draws an image": 1.5, "error": 0.05}
        checks = {"agreement (scorer)": 0.97, "agreement (checker)": 0.96}
        speed = {"images/s": 10 * times, "times diffusers": times, "times its first draws": times / 2}
        return {**facts, **checks, **speed, **more}

    made = {bench.CHOSEN: way(1.0), GUIDED: way(2.0), DISTILLED: way(4.5, calls=1, **ours)}
    made[bench.FIRST] = {"backend": "torch", "batch": 64, "images/s": 20.0, "times diffusers": 2.0}
    return made


@pytest.mark.parametrize(
    ("ours", "lacking"),
    [
        ({}, []),
        ({"error": 0.059, "agreement (scorer)": 0.961}, []),
        ({"error": 0.062}, ["error"]),
        ({"agreement (checker)": 0.94, "agreement (scorer)": 0.95}, ["agreement (scorer)", "agreement (checker)"]),
    ],
)
def test_speed_that_costs_difficulty_or_labels_is_refused(ours: dict[str, float], lacking: list[str]) -> None:
    said = bench.fallen(table(**ours))
    assert [name for name in ("agreement (scorer)", "agreement (checker)", "error") if name in said] == lacking
    assert bool(said) == bool(lacking)


def test_what_is_written_can_be_shown() -> None:
    made, options = table(), SimpleNamespace(images=384)
    headline = bench.summarise(made)
    assert headline["met"] and headline["goal"] == 4.0 and headline["reached"] == 4.5
    shown = bench.document(made, headline, options, 2)  # pyright: ignore
    assert "4.50 times" in shown["sentences"][0] and "2.25 times" in shown["sentences"][1]
    (sheet,) = shown["tables"]
    assert all(len(row) == len(sheet["columns"]) for row in sheet["rows"]) and len(sheet["rows"]) == 4


def test_a_sketch_is_small_and_the_default_is_whole() -> None:
    whole, small = bench.parse([]), bench.parse(["--sketch"])
    assert small.images < whole.images and small.rounds == 1 and max(small.batches) < max(whole.batches)


def pictures(rows: list[PlanRow], batch: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((4, 4, 3), row.seed % 256, np.uint8)) for row in rows]


def by_brightness(images: np.ndarray, labels: np.ndarray) -> Verdict:
    difficulty = images[:, 0, 0, 0].astype(np.float32) / 255
    return Verdict(difficulty, labels, np.zeros(len(images), np.float32))


@pytest.fixture
def pipeline() -> bench.Pipeline:
    """diffusers' side with pictures in place of its pipeline: their brightness is the difficulty, by the seed."""
    made = bench.Pipeline.__new__(bench.Pipeline)
    made.rows = [PlanRow(i, f"s{i}", i % 2, "one", "a one", TARGET, TARGET, 7919 * i) for i in range(20)]
    made.config = SimpleNamespace(attempts=4, tolerance=0.1)  # pyright: ignore
    made.batch, made.measure = 8, bench.Counted(by_brightness)
    made.rival = SimpleNamespace(images=pictures)  # pyright: ignore
    return made


def test_diffusers_draws_again_what_misses_and_every_draw_counts(pipeline: bench.Pipeline, tmp_path: Path) -> None:
    kept = bench.keep(pipeline)
    assert [row.sample_id for row in kept.rows] == [row.sample_id for row in pipeline.rows]
    first = by_brightness(
        np.stack([np.asarray(image) for image in pictures(pipeline.rows, 8)]), np.zeros(20)
    ).difficulty
    misses = np.abs(kept.verdict.difficulty - TARGET)
    assert (misses <= np.abs(first - TARGET) + 1e-6).all() and misses.mean() < np.abs(first - TARGET).mean()
    assert 20 < kept.draws <= 80 and kept.images.shape == (20, 4, 4, 3)
    pipeline.to_files(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 20


@pytest.mark.slow
def test_the_whole_of_it_on_a_run_that_learnt_little(tmp_path: Path) -> None:
    environment = {**os.environ, "BENCHMARK_RESULTS": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, bench.__file__, "--sketch"],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert set(made["ways"]) == {bench.CHOSEN, bench.FIRST, GUIDED, DISTILLED}
    assert made["ways"][DISTILLED]["calls"] == 1 and made["ways"][DISTILLED]["backend"] != "torch"
    assert not list(tmp_path.iterdir())  # nothing is published
