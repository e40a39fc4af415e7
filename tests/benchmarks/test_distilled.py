"""What bench_distilled.py says of its numbers: goals met or not, intervals, and when distilling is repaid."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bench_distilled as bench
import numpy as np
import pytest


def table(**ours: float) -> dict[str, dict[str, Any]]:
    guided = {
        "error of bin means": 0.03, "error of images": 0.08, "agreement (scorer)": 0.95, "agreement (checker)": 0.96,
        "coverage": 0.7, "images/s": 10.0, "times guided": 1.0, "realised": [0.1, 0.5], "images": 400,
    }  # fmt: skip
    return {bench.GUIDED: guided, bench.DISTILLED: {**guided, "images/s": 25.0, "times guided": 2.5, **ours}}


@pytest.mark.parametrize(
    ("ours", "missed"),
    [
        ({}, set()),
        ({"times guided": 1.9}, {"images/s"}),
        ({"error of bin means": 0.041}, {"adherence"}),
        ({"error of bin means": 0.039, "coverage": 0.695}, set()),
        ({"agreement (scorer)": 0.93, "coverage": 0.6}, {"agreement (scorer)", "coverage"}),
    ],
)
def test_goals(ours: dict[str, float], missed: set[str]) -> None:
    price = {"calls": 3, "break_even_images": 1200, "training_seconds": 60.0, "with_calibration_seconds": 72.0}
    made = bench.document(table(**ours), {"error of images": (0.001, -0.01, 0.01)}, price, [0.1, 0.5], 200)
    assert {name for name, met in made["goals"].items() if not met} == missed
    assert "against 3 guided ones" in made["title"]
    assert sum("NOT met" in sentence for sentence in made["sentences"]) == len(missed)
    assert "repaid after 1,200 images" in made["sentences"][-1]
    first, second = made["tables"]
    assert all(len(row) == len(first["columns"]) for row in first["rows"]) and "realised" not in first["columns"]
    assert second["rows"] == [["error of images", "+0.0010", "-0.0100 to +0.0100"]]


def test_an_interval_holds_the_mean_and_shrinks_with_the_images() -> None:
    values = np.random.default_rng(1).normal(0.2, 1.0, 4000)
    few, many = bench.interval(values[:100]), bench.interval(values)
    assert few[1] < few[0] < few[2] and many[1] < 0.2 < many[2]
    assert many[2] - many[1] < (few[2] - few[1]) / 4


def test_what_is_no_faster_is_never_repaid() -> None:
    record, calibrated = SimpleNamespace(seconds=90.0, results={"calls": 3}), SimpleNamespace(seconds=30.0)
    folder = SimpleNamespace(with_distilled=lambda _: SimpleNamespace(record=lambda _: calibrated))
    run: Any = SimpleNamespace(record=lambda _: record, folder=folder)
    price = bench.repayment(run, table())
    assert price["break_even_images"] == pytest.approx(120 / (1 / 10 - 1 / 25), abs=1)
    assert bench.repayment(run, table(**{"images/s": 10.0}))["break_even_images"] is None
