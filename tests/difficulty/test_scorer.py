from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dcdm_cli.difficulty.classifier import build_classifier, logits_of, predict_logits
from dcdm_cli.difficulty.crossfit import CrossFit, crossfit, unseen_models
from dcdm_cli.difficulty.own_classifier import load_own_classifier
from dcdm_cli.difficulty.scorer import DESCRIPTION, Scorer, save_own_scorer, save_scorer
from dcdm_cli.difficulty.scores import softmax
from dcdm_cli.difficulty.scoring import _check_answers
from dcdm_cli.errors import MismatchError, NotFoundError, NumericalError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig
from tests.difficulty.conftest import NAMES, MakeManifest
from tests.difficulty.test_own_classifier import write_onnx

Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def fitted(digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest) -> CrossFit:
    return crossfit(make_manifest(digits[0][:40], digits[1][:40]), quick, Job())


def test_the_difficulty_is_the_mean_over_the_folds(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, fitted: CrossFit
) -> None:
    save_scorer(tmp_path / "scorer", fitted, NAMES, quick)
    scorer = Scorer.load(tmp_path / "scorer")
    images, labels = digits[0][40:60], digits[1][40:60]
    measured = scorer.measure(images, labels, batch_size=7)
    difficulty, predicted, rival, shows = scorer.verdicts(images, labels)
    assert rival is not None and shows is None
    np.testing.assert_allclose(difficulty, measured.difficulty, atol=1e-5)
    assert np.array_equal(predicted, measured.predicted)
    assert all(r == max(p for c, p in enumerate(probs) if c != label) for r, probs, label in
               zip(rival, scorer.measure(images, labels).probs, labels, strict=True))  # fmt: skip

    logits = np.stack([predict_logits(model, images, quick, "cpu") for model in fitted.models])
    probs = softmax(logits / fitted.temperature).mean(0)
    np.testing.assert_allclose(measured.probs, probs, atol=1e-5)
    np.testing.assert_allclose(measured.difficulty, 1 - probs[np.arange(20), labels], atol=1e-5)
    np.testing.assert_allclose(measured.p_true, 1 - measured.difficulty, atol=1e-6)
    np.testing.assert_array_equal(measured.predicted, probs.argmax(1))
    np.testing.assert_allclose(measured.probs.sum(1), 1, atol=1e-5)
    assert scorer.class_names == NAMES
    assert {p.suffix for p in (tmp_path / "scorer").rglob("*") if p.is_file()} == {".safetensors", ".json"}


def test_an_image_can_be_kept_from_models_that_were_trained_on_it(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest
) -> None:
    manifest = make_manifest(digits[0][:40], digits[1][:40])
    quick = quick.model_copy(update={"repeats": 2})
    fitted = crossfit(manifest, quick, Job())
    manifest = manifest.with_columns(fitted.columns)
    save_scorer(tmp_path / "scorer", fitted, NAMES, quick)
    unseen = unseen_models(manifest, quick)
    assert unseen.shape == (40, 2) and len(np.unique(unseen)) == len(fitted.models)
    measured = Scorer.load(tmp_path / "scorer").measure(manifest.paths(), manifest.column("label"), only=unseen)
    known = np.isfinite(fitted.columns["difficulty"])
    np.testing.assert_allclose(measured.difficulty[known], fitted.columns["difficulty"][known], atol=1e-5)
    with pytest.raises(MismatchError, match="other images"):
        unseen_models(manifest.select(np.arange(38)), quick)


def test_pictures_missing_labels_and_nothing(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, fitted: CrossFit
) -> None:
    save_scorer(tmp_path, fitted, NAMES, quick)
    scorer = Scorer.load(tmp_path)
    measured = scorer.measure([Image.fromarray(image) for image in digits[0][:2]], np.array([3, -1]))
    assert np.isnan(measured.difficulty).tolist() == [False, True]
    assert (measured.predicted >= 0).all()
    assert scorer.measure([], np.zeros(0, int)).probs.shape == (0, 10)
    with pytest.raises(UsageError):
        scorer.measure(digits[0][:2], np.array([0, 10]))


def test_a_broken_model_gives_nan_not_an_easy_image(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, fitted: CrossFit
) -> None:
    save_scorer(tmp_path, fitted, NAMES, quick)
    scorer = Scorer.load(tmp_path)
    with torch.no_grad():
        next(scorer.models[1].parameters()).fill_(torch.nan)
    measured = scorer.measure(digits[0][:2], digits[1][:2])
    assert np.isnan(measured.difficulty).all() and (measured.predicted == -1).all()
    with pytest.raises(NumericalError, match="no finite answer for any of 8 images") as caught:
        scorer.measure(digits[0][:8], digits[1][:8])
    assert caught.value.code == 4


@pytest.mark.parametrize(("lost", "fails"), [(1, False), (2, True)])
def test_a_scorer_without_answers_is_named_and_not_called_a_slip_of_the_user(lost: int, fails: bool) -> None:
    predicted, labels, config = np.zeros(100, np.int32), np.zeros(100, np.int64), ScoreConfig(model="resnet10t")
    predicted[:lost] = -1
    if not fails:
        assert _check_answers(predicted, labels, config) == lost
        return
    with pytest.raises(NumericalError, match=r"resnet10t\) gives no finite answer for 2 of 100 images") as caught:
        _check_answers(predicted, labels, config)
    assert caught.value.code == 4


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_ones_own_classifier_is_kept_with_the_run(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, kind: str
) -> None:
    ours, theirs = ["dog", "ant", "cat"], ["ant", "bee", "cat", "dog"]
    file = tmp_path / f"scorer.{kind}"
    if kind == "onnx":
        write_onnx(file, theirs)
    else:
        save_file(build_classifier(quick, 4).state_dict(), file, {"class_names": json.dumps(theirs)})
    file.with_suffix(".json").write_text(json.dumps({"image_size": 32, "mean": [0.1, 0.2, 0.3]}))
    own = load_own_classifier(file, ours, quick)
    expected = logits_of([own.model], digits[0][:3], own.preprocessing, "cpu")[0]
    save_own_scorer(tmp_path / "scorer", own, temperature=2.0)
    file.unlink()

    scorer = Scorer.load(tmp_path / "scorer")
    measured = scorer.measure(digits[0][:3], np.array([0, 1, 2]))
    assert scorer.class_names == ("dog", "ant", "cat", "bee")
    assert scorer.preprocessing == own.preprocessing
    np.testing.assert_allclose(measured.probs, softmax(expected / 2), atol=1e-5)


def test_a_missing_scorer_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Scorer.load(tmp_path)
    assert "dcdm score" in caught.value.hint


def test_a_damaged_scorer(tmp_path: Path, quick: ScoreConfig, fitted: CrossFit) -> None:
    save_scorer(tmp_path, fitted, NAMES, quick)
    intact = json.loads((tmp_path / DESCRIPTION).read_text())
    for change in ({"class_names": ["a", "b"]}, {"folds": "three"}, {"temperature": None}):
        (tmp_path / DESCRIPTION).write_text(json.dumps(intact | change))
        with pytest.raises(MismatchError):
            Scorer.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps(intact | {"folds": 4}))
    with pytest.raises(NotFoundError):
        Scorer.load(tmp_path)
