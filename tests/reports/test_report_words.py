from __future__ import annotations

import pytest

from dcdm_cli.reports.words import duration, interval, labels_hold_until, points, summary_sentences, verdict


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.42, "0.4 s"),
        (9.99, "10.0 s"),
        (48, "48 s"),
        (59.7, "1 min"),
        (725, "12 min 5 s"),
        (3600, "1 h"),
        (11_461, "3 h 11 min"),
    ],
)
def test_duration_has_two_units_at_most(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("bounds", "word"),
    [
        ([0.003, 0.015], "better"),
        ([-0.02, -0.01], "worse"),
        ([-0.01, 0.01], "cannot tell"),
        ([0.0, 0.01], "cannot tell"),
        (None, "cannot tell"),
        ([None, None], "cannot tell"),
    ],
)
def test_verdict_needs_an_interval_clear_of_zero(bounds, word):
    assert verdict({"difference_ci95": bounds}) == word


def test_shares_are_written_times_a_hundred():
    assert points(0.009) == "+0.9"
    assert interval([0.003, 0.015]) == "[0.3, 1.5]"
    assert interval([0.95, None]) == "–"


def test_the_frontier_ends_at_the_first_fall_and_skips_empty_bins():
    rows = [
        {"bin": [i / 10, (i + 1) / 10], "real_agreement": agreement}
        for i, agreement in enumerate([1.0, None, 0.95, 0.5, 1.0])
    ]
    assert labels_hold_until(rows, "real") == pytest.approx(0.3)
    assert labels_hold_until(rows[3:], "real") is None


def test_sentences_say_what_the_numbers_mean(metrics):
    text = "\n".join(summary_sentences(metrics))
    assert "dcdm vs real: +0.9 points of accuracy [0.3, 1.5] over 8 paired seeds: better." in text
    assert "hard vs real: -3.0 points of accuracy over 1 paired seed: cannot tell." in text
    assert "Difficulty can be steered: rank correlation 0.81" in text
    assert "from 0.05 to 0.72 can be reached" in text
    assert "Generated images keep their label in at least 90 % of cases up to difficulty 0.2" in text
    assert "16 min 30 s on cpu; most of it finetune (12 min 34 s)" in text


def test_missing_sections_are_left_out():
    assert summary_sentences({"schema": 1}) == []
    assert len(summary_sentences({"seconds": {"score": 1.0}})) == 1
