from __future__ import annotations

import numpy as np
import pytest

from dcdm_cli.evaluation.agreement import agreement_sentence, error_agreement


def test_errors_that_are_made_together_are_counted() -> None:
    labels = np.zeros(100, int)
    scorer = np.where(np.arange(100) < 20, 1, 0)
    judge = np.where(np.arange(100) < 10, 1, np.where(np.arange(100) < 15, 2, 0))
    found = error_agreement(scorer, judge, labels)
    assert (found["scorer_error"], found["judge_error"], found["both_wrong"]) == (0.2, 0.15, 0.15)
    assert found["expected"] == pytest.approx(0.03) and found["same_class"] == pytest.approx(10 / 15, abs=1e-4)
    assert found["phi"] > 0.8 and found["p"] < 1e-6 and found["verdict"] == "related"
    assert "blind spots" in agreement_sentence(found)


def test_errors_of_independent_classifiers_are_apart() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 2000)
    scorer, judge = (np.where(rng.random(2000) < 0.2, (labels + 1) % 5, labels) for _ in range(2))
    found = error_agreement(scorer, judge, labels)
    assert found["verdict"] == "apart" and abs(found["phi"]) < 0.06 and found["same_class"] == 1.0
    assert found["both_wrong"] == pytest.approx(found["expected"], abs=0.01)
    assert "independent" in agreement_sentence(found)


def test_nothing_is_said_without_errors_or_images() -> None:
    labels = np.arange(6) % 3
    assert error_agreement(labels, (labels + 1) % 3, labels)["verdict"] == "cannot tell"
    found = error_agreement(np.array([-1, 0]), np.array([0, 0]), np.array([0, -1]))
    assert found["n"] == 0 and found["phi"] is None and "too few errors" in agreement_sentence(found)
