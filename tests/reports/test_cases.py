"""Where control pays: the cases that were measured, and the one most like a reader's own."""

from __future__ import annotations

from typing import Any

import pytest

from dcdm_cli.reports.advice import Advice, advice
from dcdm_cli.reports.cases import MeasuredCase, measured_cases, nearest_case

FEW = MeasuredCase("digits", 50, 1.0, "weak", 24, 0.01, 0.004, 0.016, "better")
MANY = MeasuredCase("photos", 1000, 1.0, "strong", 6, -0.008, -0.017, 0.001, "cannot tell")
MORE = MeasuredCase("photos", 1000, 4.0, "strong", 6, 0.0, -0.01, 0.01, "cannot tell")


def control(metrics: dict[str, Any]) -> Advice:
    (found,) = [one for one in advice(metrics) if one.question == "Does control pay here?"]
    return found


def test_the_nearest_case_is_by_real_images_first() -> None:
    cases = (FEW, MANY, MORE)
    assert nearest_case(30, 4.0, cases) == FEW
    assert nearest_case(800, 1.2, cases) == MANY and nearest_case(5000, 3.0, cases) == MORE


def test_a_report_says_what_was_measured_elsewhere_and_how_to_measure_it_here(metrics: dict) -> None:
    metrics["downstream"] |= {"real_images": 40, "paired": []}
    metrics["downstream"]["arms"] = [{"name": "dcdm", "synthetic_images": 40}]
    found = control(metrics)
    assert found.answer == "Not measured" and found.command == "dcdm evaluate --arms real,plain,dcdm --seeds 6"
    assert nearest_case(40, 1.0, measured_cases()).told() in found.why


@pytest.mark.parametrize(
    ("verdict", "answer"), [("better", "Yes"), ("worse", "Not here"), ("cannot tell", "Cannot be told")]
)
def test_where_plain_images_were_made_they_answer(metrics: dict, verdict: str, answer: str) -> None:
    pair = {"arm": "dcdm", "against": "plain", "difference_mean": 0.02, "difference_ci95": [0.01, 0.03], "seeds": 6}
    metrics["downstream"] |= {"real_images": 40, "paired": [{**pair, "verdict": verdict, "seeds_needed": 6}]}
    metrics["downstream"]["arms"] = [{"name": "dcdm", "synthetic_images": 40}]
    found = control(metrics)
    assert found.answer == answer and "+2.0 points of accuracy against plain" in found.why and found.command == ""
    assert ("--conditioning none" in found.why) == (verdict == "worse")


def test_every_measured_case_has_an_interval_around_its_difference() -> None:
    assert len(measured_cases()) >= 3
    for case in measured_cases():
        assert case.low <= case.difference <= case.high and case.real > 0 and case.ratio > 0
