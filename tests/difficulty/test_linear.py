"""Heads on features: the solution of the problem that scikit-learn solves too, and a penalty chosen without a look."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dcdm_cli.difficulty.linear import NEVER, PENALTIES, USUAL, Lesson, chosen_penalty, fit_head, fit_with
from dcdm_cli.errors import UsageError

RNG = np.random.default_rng(0)


def lesson(n: int = 90, width: int = 12, classes: int = 3, noise: float = 1.0) -> Lesson:
    """Classes around middles of their own, features of very different scales."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) % classes
    middles = rng.normal(size=(classes, width))
    features = (middles[labels] + noise * rng.normal(size=(n, width))) * np.logspace(-0.4, 0.4, width) + 7
    return Lesson(features.astype(np.float32), labels, [str(i) for i in range(n)], classes)


@pytest.mark.parametrize("penalty", [1.0, 30.0])
def test_a_head_is_the_logistic_regression_of_standardised_features(penalty: float) -> None:
    task = lesson()
    head = fit_with(task, penalty)
    standard = (task.features - task.features.mean(0)) / task.features.std(0)
    theirs = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-8).fit(standard.astype(np.float64), task.labels)
    ours = head.logits(task.features)
    expected = theirs.decision_function(standard)
    centred = ours - ours.mean(1, keepdims=True)
    np.testing.assert_allclose(centred, expected - expected.mean(1, keepdims=True), atol=0.02)


def test_the_penalty_follows_the_noise() -> None:
    assert chosen_penalty(lesson(noise=4.0), 0)[0] > chosen_penalty(lesson(noise=0.3), 0)[0]
    assert chosen_penalty(lesson(), 0)[0] in PENALTIES


def test_heads_of_any_penalty_mean_the_same_by_their_logits() -> None:
    """Random labels, every image four times: with copies in two folds they would seem to be known by heart."""
    features = np.repeat(RNG.normal(size=(30, 40)).astype(np.float32), 4, axis=0)
    labels = np.repeat(RNG.integers(0, 3, 30), 4)
    honest = Lesson(features, labels, [str(i // 4) for i in range(120)], 3)
    fooled = Lesson(features, labels, [str(i) for i in range(120)], 3)
    asked = RNG.normal(size=(200, 40)).astype(np.float32)
    spread = [np.ptp(fit_head(lesson, 0).logits(asked), axis=1).mean() for lesson in (honest, fooled)]
    assert spread[0] < 1 < 3 < spread[1]


def test_a_class_without_images_is_never_said() -> None:
    task = lesson()
    head = fit_with(Lesson(task.features, task.labels, task.identities, 5), 10.0)
    assert head.logits(task.features)[:, 3:].max() <= NEVER + 1 and head.weight.shape == (5, 12)
    assert (head.logits(task.features).argmax(1) == task.labels).mean() > 0.9


def test_a_constant_feature_and_few_images() -> None:
    task = lesson(6)
    task.features[:, 0] = 3
    head = fit_head(task, 0)
    assert np.isfinite(head.weight).all() and np.isfinite(head.bias).all()
    few = Lesson(task.features[:3], np.arange(3), list("abc"), 3)
    assert chosen_penalty(few, 0) == (USUAL, 1.0) and np.isfinite(fit_head(few, 0).weight).all()
    with pytest.raises(UsageError, match="at least 2"):
        fit_head(Lesson(task.features[:1], np.zeros(1, np.int64), ["a"], 3), 0)


def test_a_layer_says_what_its_head_says() -> None:
    import torch

    task = lesson()
    head = fit_with(task, 10.0)
    layer = head.layer()(torch.from_numpy(task.features)).numpy()
    np.testing.assert_allclose(layer, head.logits(task.features), rtol=1e-4, atol=1e-3)


def test_a_feature_that_hardly_moves_does_not_decide_where_it_does() -> None:
    task = lesson()
    task.features[:, 0] = 1e-5 * RNG.normal(size=90)
    head, moved = fit_with(task, 10.0), task.features.copy()
    moved[:, 0] += 0.01
    np.testing.assert_allclose(head.logits(moved), head.logits(task.features), atol=0.1)
