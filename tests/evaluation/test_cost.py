"""The bill, and the crossing of two sweeps."""

from __future__ import annotations

from typing import Any

import pytest

from dcdm_cli.evaluation.cost import bill
from dcdm_cli.evaluation.crossing import CurvePoint, crossing
from dcdm_cli.run.store import StageRecord

BETTER = {"verdict": "better", "difference_mean": 0.02}


def record(
    stage: str, seconds: float, device: str = "cuda", energy: float | None = 10.0, one_off: Any = None, **results: Any
) -> StageRecord:
    return StageRecord(
        stage, {}, {}, [], "", results, seconds, device, 2000, "", {}, energy_wh=energy, one_off=one_off or {}
    )


def test_seconds_times_devices_money_and_shares() -> None:
    spent = {"load_seconds": 30.0}
    records = {
        "finetune": record("finetune", 1800, "cuda:0,cuda:1", one_off=spent),
        "generate": record("generate", 3600),
    }
    made = bill(records, 1000, BETTER, 3.0)
    assert made["hours"] == {"GPU-hours": 2.0, "CPU-hours": 0.0} and made["money"] == 6.0
    assert made["per_image"] == {"GPU-hours": 0.002, "CPU-hours": 0.0, "money": 0.006}
    assert made["points_gained"] == 2.0 and made["per_point"] == {"GPU-hours": 1.0, "CPU-hours": 0.0, "money": 3.0}
    assert made["energy_wh"] == 20.0
    first = made["stages"][0]
    assert (first["devices"], first["device"]) == (2, "cuda")
    assert (first["load_seconds"], first["warmup_seconds"]) == (30.0, None)


def test_workers_on_one_cpu_share_its_hours_and_a_group_of_gpus_has_each() -> None:
    stages = {"generate": record("generate", 3600, "cpu,cpu"), "finetune": record("finetune", 1800, processes=4)}
    made = bill(stages, 10, None, None)
    assert made["hours"] == {"GPU-hours": 2.0, "CPU-hours": 1.0}
    assert [(s["devices"], s["device"]) for s in made["stages"]] == [(2, "cpu"), (4, "cuda")]


def test_what_is_not_known_is_null_and_not_nothing() -> None:
    records = {"score": record("score", 360, "cpu", None), "generate": record("generate", 360)}
    made = bill(records, 0, {"verdict": "cannot tell", "difference_mean": 0.02}, 3.0)
    assert made["hours"] == {"GPU-hours": 0.1, "CPU-hours": 0.1}
    assert made["energy_wh"] is None and made["money"] is None  # CPU-hours have no price
    assert made["points_gained"] is None and made["per_point"] is None and made["per_image"] is None
    assert bill({}, 5, None, 3.0)["money"] is None


def test_evaluation_is_shown_and_not_charged_to_the_images() -> None:
    made = bill({"generate": record("generate", 3600), "evaluate": record("evaluate", 7200)}, 10, None, None)
    assert made["hours"]["GPU-hours"] == 1.0 and len(made["stages"]) == 2


def points(*values: tuple[float, int, float, float | None]) -> list[CurvePoint]:
    return [
        CurvePoint(ratio, images, [mean - 0.01, mean, mean + 0.01], seconds) for ratio, images, mean, seconds in values
    ]


def test_ours_reaches_the_controls_best_with_a_fifth_of_its_images() -> None:
    control = points((0.1, 20, 0.90, 2.0), (0.5, 100, 0.93, 10.0), (1.0, 200, 0.92, 20.0))
    ours = points((0.1, 20, 0.931, 3.0), (0.5, 100, 0.95, 15.0))
    made = crossing(control, ours)
    assert made["control"]["ratio"] == 0.5 and made["ours"]["ratio"] == 0.1
    assert made["image_share"] == 0.2 and made["cost_share"] == 0.3
    assert made["comparison"]["difference_mean"] == pytest.approx(0.001) and made["whole_share"] is None
    whole = crossing(control, ours, (50.0, 72.0))
    assert whole["whole_share"] == 1.25 and whole["before_seconds"] == {"control": 50.0, "ours": 72.0}


def test_a_best_that_is_never_reached_and_times_that_are_not_known() -> None:
    control = points((1.0, 200, 0.95, None))
    assert crossing(control, points((1.0, 200, 0.94, 3.0)))["ours"] is None
    made = crossing(control, points((0.5, 100, 0.96, 3.0)))
    assert made["image_share"] == 0.5 and made["cost_share"] is None
