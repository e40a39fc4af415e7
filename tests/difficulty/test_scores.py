from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dcdm_cli.data.manifest import SCORE_COLUMNS
from dcdm_cli.difficulty.scores import (
    SCORES,
    fit_temperature,
    score_all,
    score_columns,
    softmax,
    suspect_labels,
)
from dcdm_cli.errors import UsageError

logit = st.floats(-40, 40, width=32)


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return draw(arrays(np.float32, (rows, classes), elements=logit)), np.array(labels)


def test_against_values_by_hand() -> None:
    columns = score_columns(np.log([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]), np.array([0, 1]))
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    expected = {
        "difficulty": [0.3, 0.8],
        "p_true": [0.7, 0.2],
        "loss": [-math.log(0.7), -math.log(0.2)],
        "margin": [0.5, -0.5],
        "entropy": [entropy, entropy],
        "predicted": [0, 0],
    }
    assert set(columns) == set(expected) == set(SCORES) | {"predicted"}
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-6)


@given(answers())
def test_ranges(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    columns = score_columns(logits, labels)
    assert all(len(values) == len(labels) for values in columns.values())
    for name in ("difficulty", "p_true"):
        assert ((columns[name] >= 0) & (columns[name] <= 1)).all()
    assert (np.abs(columns["margin"]) <= 1).all()
    assert (columns["loss"] >= 0).all()
    assert ((columns["entropy"] >= 0) & (columns["entropy"] <= math.log(logits.shape[1]) + 1e-5)).all()
    np.testing.assert_allclose(columns["difficulty"] + columns["p_true"], 1, atol=1e-6)
    assert (columns["margin"][columns["predicted"] != labels] <= 1e-6).all()


@given(answers(), st.floats(0.01, 20))
def test_more_evidence_for_the_label_is_never_harder(case: tuple[np.ndarray, np.ndarray], more: float) -> None:
    logits, labels = case
    raised = logits.astype(np.float64)
    raised[np.arange(len(labels)), labels] += more
    before, after = score_columns(logits, labels), score_columns(raised, labels)
    assert (after["difficulty"] <= before["difficulty"]).all()
    assert (after["loss"] <= before["loss"]).all()
    assert (after["margin"] >= before["margin"] - 1e-6).all()


@given(answers(), st.floats(-1e4, 1e4))
def test_a_constant_on_all_logits_changes_nothing(case: tuple[np.ndarray, np.ndarray], shift: float) -> None:
    logits, labels = case[0].astype(np.float64), case[1]
    np.testing.assert_allclose(
        score_columns(logits + shift, labels)["difficulty"], score_columns(logits, labels)["difficulty"], atol=1e-6
    )


def test_very_easy_images_keep_their_order() -> None:
    columns = score_columns(np.array([[40.0, 0.0], [50.0, 0.0], [60.0, 0.0]]), np.zeros(3, int))
    assert columns["difficulty"][0] > columns["difficulty"][1] > columns["difficulty"][2] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_answer_is_nan_and_stays_in_its_row(bad: float) -> None:
    logits = np.array([[1.0, 0.0, 0.0], [1.0, bad, 0.0], [0.0, 2.0, 0.0]])
    columns = score_columns(logits, np.array([0, 0, -1]))
    for name in SCORES:
        assert np.isnan(columns[name]).tolist() == [False, True, True]
    assert columns["predicted"].tolist() == [0, -1, 1]
    assert np.isnan(softmax(logits)[1]).all() and not np.isnan(softmax(logits)[[0, 2]]).any()


def test_no_images_give_empty_columns() -> None:
    assert {len(values) for values in score_columns(np.zeros((0, 3)), np.zeros(0, int)).values()} == {0}


@pytest.mark.parametrize(
    ("shape", "labels"), [((2, 3), [0]), ((2, 3), [0, 3]), ((2, 3), [-2, 0]), ((2, 1), [0, 0]), ((6,), [0])]
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], labels: list[int]) -> None:
    with pytest.raises(UsageError):
        score_columns(np.zeros(shape), np.array(labels))


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_recovered(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits)])
    assert fit_temperature(logits * true_temperature, labels) == pytest.approx(true_temperature, rel=0.05)


def test_the_temperature_ignores_unusable_rows_and_defaults_to_one() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    more = np.concatenate([logits, np.full((1, 3), np.nan), np.full((1, 3), 50.0)])
    assert fit_temperature(more, np.append(labels, [0, -1])) == pytest.approx(fit_temperature(logits, labels))
    assert fit_temperature(np.full((2, 3), np.nan), np.array([0, 1])) == 1.0


def test_only_the_confidently_contradicted_label_is_suspect() -> None:
    sure, unsure, wrong = [0.95, 0.05, 0.0], [0.4, 0.35, 0.25], [0.02, 0.97, 0.01]
    probs = np.array([sure, sure, unsure, [0.1, 0.9, 0.0], [0.1, 0.9, 0.0], wrong, [0.0, 0.0, 1.0], wrong])
    labels = np.array([0, 0, 1, 1, 1, 0, 0, -1])
    # Row 2 is only hard; row 6 points to a class nobody labelled; row 7 has no label.
    assert np.flatnonzero(suspect_labels(probs, labels)).tolist() == [5]


def test_an_unsure_classifier_suspects_nothing() -> None:
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(size=(1000, 10)) * 0.5)
    assert not suspect_labels(probs, rng.integers(0, 10, 1000)).any()


def test_score_all_fills_the_manifest_and_leaves_unlabelled_rows_out() -> None:
    logits, labels = np.array([[3.0, 0.0], [0.0, 3.0], [1.0, 0.0], [9.0, 0.0]]), np.array([0, 1, 1, -1])
    scored = score_all(logits, labels, calibrate=True)
    assert set(scored.columns) == set(SCORE_COLUMNS) - {"fold"}
    assert scored.accuracy == pytest.approx(2 / 3)
    assert scored.temperature != 1.0
    assert score_all(logits, labels, calibrate=False).temperature == 1.0
