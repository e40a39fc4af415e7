from __future__ import annotations

import pytest

from dcdm_cli.reports.formatting import (
    duration,
    generated_sentence,
    interval,
    paired_sentences,
    points,
    probability,
    summary_sentences,
    verdict,
)


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


def test_a_verdict_says_how_many_seeds_would_tell():
    assert verdict({"verdict": "better", "seeds": 8, "seeds_needed": 3}) == "better"
    assert verdict({"verdict": "cannot tell", "seeds": 3, "seeds_needed": 24}) == (
        "cannot tell at 3 seeds; about 24 would"
    )
    assert verdict({"verdict": "points to better", "seeds": 3, "seeds_needed": 6}) == (
        "points to better; 3 more seeds would decide"
    )
    assert verdict({"verdict": "points to worse", "seeds": 5, "seeds_needed": 6}) == (
        "points to worse; 1 more seed would decide"
    )
    assert verdict({"verdict": "points to worse", "seeds": 9, "seeds_needed": 8}) == (
        "points to worse; more seeds would decide"
    )
    assert verdict({"verdict": "cannot tell", "seeds": 1, "seeds_needed": None}) == "cannot tell at 1 seed"
    assert verdict({"verdict": "cannot tell", "seeds": 9, "seeds_needed": 8}) == "cannot tell at 9 seeds"


def test_small_probabilities_are_bounds():
    assert [probability(p) for p in (None, 0.0004, 0.0312)] == ["–", "< 0.001", "0.031"]


def test_many_comparisons_carry_a_warning(metrics):
    pair = metrics["downstream"]["paired"][0]
    assert len(list(paired_sentences([pair] * 4))) == 4
    assert "1 95 % interval in 20" not in "".join(paired_sentences([pair] * 4))
    assert "about one 95 % interval in 20" in list(paired_sentences([pair] * 5))[-1]


def test_shares_are_written_times_a_hundred():
    assert points(0.009) == "+0.9"
    assert interval([0.003, 0.015]) == "[0.3, 1.5]"
    assert interval([0.95, None]) == "–"


def test_sentences_say_what_the_numbers_mean(metrics):
    text = "\n".join(summary_sentences(metrics))
    assert "dcdm vs real: +0.9 points of accuracy [0.3, 1.5] over 8 paired seeds, p = 0.008: better." in text
    assert "hard vs real: -3.0 points of accuracy over 1 paired seed: cannot tell at 1 seed." in text
    assert "Difficulty can be steered: rank correlation 0.81" in text
    assert "from 0.05 to 0.72 can be reached" in text
    assert "Generated images keep their label in at least 90 % of cases up to difficulty 0.2" in text
    assert "Of 200 generated images 1 are blank, 2 repeat a training image and 3 a held-out image" in text
    assert "Leak: generated images repeat held-out images" in text
    assert "10.0 % of the generated images lie closer to a training image than 99 %" in text
    assert "Making 200 images cost 0.2 CPU-hours, scoring and fine-tuning included." in text
    assert "0.90 points of accuracy were gained: 0.222 CPU-hours per point." in text
    assert "16 min 30 s on cpu; most of it finetune (12 min 34 s)" in text


def test_missing_sections_are_left_out():
    assert summary_sentences({"schema": 1}) == []
    assert len(summary_sentences({"seconds": {"score": 1.0}})) == 1
    assert summary_sentences({"seconds": {"artefacts": 18.0}}) == ["Looking at them took 18 s."]


def test_how_generated_images_came_out_is_said_beside_what_guessing_and_the_largest_class_get() -> None:
    made = {"images": 40, "measured_mean": 0.42, "target_mean": 0.4, "label_agreement": 0.8}
    known = {"accuracy": 0.7, "asked": 200, "chance": 0.3, "prior": 0.6}
    assert "(guessing: 30 %, always naming the largest class: 60 %)" in generated_sentence(made, known)
    assert generated_sentence(made, {**known, "prior": 0.301}).endswith("did not learn from (guessing: 30 %).")
