"""What counts as knowing more than chance, and what happens to who does not."""

from __future__ import annotations

import numpy as np
import pytest

from dcdm_cli.difficulty.competence import (
    FEWEST,
    JUDGE,
    LOOK,
    MEANS,
    SCORER,
    competence,
    competence_sentence,
    exchanged_sentence,
    guard,
)
from dcdm_cli.errors import NumericalError
from dcdm_cli.reports.formatting import known_sentences, weak_sentences

LABELS = np.repeat(np.arange(10), 30)


def answers(right: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(LABELS)) < right, LABELS, rng.integers(0, 10, len(LABELS)))


@pytest.mark.parametrize(("right", "verdict"), [(0.0, "chance"), (0.3, "weak"), (0.9, "good"), (1.0, "good")])
def test_verdicts(right: float, verdict: str) -> None:
    found = competence(answers(right), LABELS)
    assert (found["verdict"], found["asked"], found["prior"]) == (verdict, 300, 0.1)
    assert found["chance"] == pytest.approx(0.1, abs=0.01)


def test_naming_the_largest_class_is_no_knowledge_however_often_it_is_right() -> None:
    labels = np.array([0] * 95 + [1] * 5)
    always = competence(np.zeros(100, int), labels)
    assert always["accuracy"] == always["prior"] == 0.95 and always["verdict"] == "chance"
    some = competence(np.where(np.arange(100) >= 97, 1, 0), labels)  # three of the five are found
    assert some["accuracy"] == 0.98 and some["verdict"] == "good"
    guessed = np.roll(np.where(labels == 1, 1, 0), 50)
    assert competence(guessed, labels)["verdict"] == "chance"


def test_few_images_tell_nothing_and_unknown_ones_do_not_count() -> None:
    few = np.arange(FEWEST - 1) % 2
    assert competence(few, few)["verdict"] == "cannot tell"
    assert competence(np.full(40, -1), np.zeros(40, int)) == {
        "asked": 0, "accuracy": None, "chance": None, "prior": None, "knows": None, "verdict": "cannot tell",
    }  # fmt: skip
    half = np.where(np.arange(300) % 2, answers(1.0), -1)
    assert competence(half, LABELS)["asked"] == 150


@pytest.mark.parametrize("who", MEANS)
def test_the_guard_warns_of_the_weak_and_stops_at_chance(who: str) -> None:
    said: list[str] = []
    guard(who, competence(answers(1.0), LABELS), "stop", said.append)
    assert not said
    guard(who, competence(answers(0.3), LABELS), "stop", said.append)
    assert len(said) == 1 and "guessing gets 10." in said[0] and "try" in said[0]
    guesser = competence(answers(0.0), LABELS)
    with pytest.raises(NumericalError, match="no better than guessing") as caught:
        guard(who, guesser, "stop", said.append)
    assert "at_chance=warn" in caught.value.hint and len(said) == 1
    assert caught.value.figures == {name: guesser[name] for name in ("accuracy", "chance", "prior", "asked")}
    guard(who, guesser, "warn", said.append)
    assert len(said) == 2 and competence_sentence(who, guesser)[:-1] in said[1]


NAMES = [f"class {label}" for label in range(10)]


@pytest.mark.parametrize("who", LOOK)
def test_two_classes_that_are_taken_for_each_other_are_named_however_good_the_rest_is(who: str) -> None:
    mapped = np.array([0, 1, 5, 3, 4, 2, 6, 7, 8, 9])[LABELS]
    found = competence(mapped, LABELS, NAMES)
    assert found["verdict"] == "good" and found["accuracy"] == 0.8 and found["exchanged"] == [["class 2", "class 5"]]
    said: list[str] = []
    guard(who, found, "stop", said.append)
    assert len(said) == 1 and "'class 2' and 'class 5'" in said[0] and "labels" in said[0]
    assert ("--class-map" in said[0] and "in another order" in said[0]) == (who == SCORER)
    assert list(weak_sentences({who: found})) == said and said[0] in next(iter(known_sentences({who: found})))


def test_what_a_classifier_may_do_by_itself_is_no_exchange() -> None:
    one_way = np.where(LABELS == 2, 5, LABELS)
    half = np.where(np.isin(LABELS, (2, 5)) & (np.arange(300) % 2 == 0), 7 - LABELS, LABELS)
    few = np.array([0] * 4 + [1] * 4 + [2] * 40)
    for predicted, labels in ((one_way, LABELS), (half, LABELS), (np.where(few < 2, 1 - few, few), few)):
        found = competence(predicted, labels, NAMES)
        assert "exchanged" not in found and exchanged_sentence(JUDGE, found) == ""
    everything = competence(LABELS ^ 1, LABELS, NAMES)
    assert len(everything["exchanged"]) == 5 and "and 2 more pairs" in exchanged_sentence(SCORER, everything)
