"""Speed, time left and the announcement of what takes long, from reports at known times."""

from __future__ import annotations

import pytest

from dcdm_cli.pace import Pace, estimated


def paced(what: str, every: float, reports: int) -> Pace:
    pace = Pace(what)
    for done in range(reports):
        pace.see(done, now=100.0 + done * every)
    return pace


def test_a_line_has_speed_detail_and_time_left() -> None:
    pace = paced("fine-tuning", 0.5, 11)
    assert pace.line(10, 1000, "loss 0.12") == "fine-tuning: 10/1000, 2 it/s, loss 0.12, 8 min left"
    assert paced("generating", 0.5, 11).line(10, 1000) == "generating: 10/1000, 2 images/s, 8 min left"
    assert paced("downstream classifiers", 90, 3).line(2, 9) == (
        "downstream classifiers: 2/9, 2 min per classifier, 10 min left"
    )


def test_nothing_is_said_before_it_is_measured() -> None:
    pace = paced("generating", 0.5, 2)
    assert pace.line(1, 100) == "generating: 1/100, 50 s left" and pace.announcement(10_000) == ""
    assert Pace("reading images").line(3, 0) == "reading images: 3"


def test_the_speed_is_that_of_the_last_minute() -> None:
    pace = Pace("generating")
    for second in range(300):
        pace.see(second if second < 100 else 100 + 10 * (second - 100), now=float(second))
    assert pace.rate == pytest.approx(10.0)


def test_only_what_takes_more_than_two_minutes_is_announced_and_once() -> None:
    pace = paced("fine-tuning", 0.5, 11)
    said = pace.announcement(5000)
    assert said.startswith("fine-tuning: 4,990 steps to go take about 42 min, until ") and said.endswith("(2 it/s)")
    assert pace.announcement(5000) == ""
    assert paced("fine-tuning", 0.5, 11).announcement(200) == ""


def test_work_that_begins_anew_is_measured_anew() -> None:
    pace = paced("training classifier", 0.5, 11)
    pace.see(0, now=200.0)
    assert pace.rate is None


def test_a_million_reports_are_not_kept() -> None:
    pace = Pace("reading images")
    for done in range(100_000):
        pace.see(done, now=done * 1e-4)
    assert len(pace.seen) < 300 and pace.rate == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (47.6, "48 s"), (95, "2 min"), (4000, "1 h 7 min")])
def test_estimates_know_no_seconds_beyond_a_minute(seconds: float, text: str) -> None:
    assert estimated(seconds) == text
