from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.data.manifest import SCORE_COLUMNS
from dcdm_cli.difficulty import crossfit as module
from dcdm_cli.difficulty.classifier import DESCRIPTION, WEIGHTS, predict_logits
from dcdm_cli.difficulty.crossfit import crossfit, fold_of
from dcdm_cli.errors import UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig
from tests.difficulty.conftest import NAMES, MakeManifest

Digits = tuple[np.ndarray, np.ndarray]
FLIPS = np.random.default_rng(5).choice(200, 5, replace=False)


@pytest.mark.slow
def test_planted_wrong_labels_are_suspect_and_few_others(
    digits: Digits, network: ScoreConfig, make_manifest: MakeManifest
) -> None:
    images, labels = digits[0][:200], digits[1][:200].copy()
    labels[FLIPS] = (labels[FLIPS] + 3) % 10
    manifest, steps = make_manifest(images, labels), []
    fitted = crossfit(manifest, network, Job(progress=lambda *step: steps.append(step)))

    suspects = set(np.flatnonzero(fitted.columns["suspect_label"]))
    assert len(suspects & set(FLIPS)) >= 3
    assert len(suspects - set(FLIPS)) <= 6
    assert fitted.columns["difficulty"][FLIPS].mean() > 0.7 > 0.3 > fitted.columns["difficulty"].mean()
    assert fitted.accuracy > 0.8
    assert len(fitted.models) == network.folds
    assert set(fitted.columns) == set(SCORE_COLUMNS)
    assert manifest.with_columns(fitted.columns).column("fold").tolist() == fitted.columns["fold"].tolist()
    assert [step for step in steps if step[0] == "cross-fitting"][-1] == (
        "cross-fitting",
        5 * network.steps,
        5 * network.steps,
    )


def test_scores_are_out_of_fold(digits: Digits, network: ScoreConfig, make_manifest: MakeManifest) -> None:
    """Random labels can only be known by heart: in-sample scores would look easy, out of fold nothing is known."""
    rng = np.random.default_rng(0)
    images, labels = digits[0][:60], rng.integers(0, 10, 60)
    config = network.model_copy(update={"steps": 250, "folds": 2, "scale": (0.95, 1.0), "rotate": 0.0})
    fitted = crossfit(make_manifest(images, labels), config, Job())
    unseen = fitted.columns["fold"] == 0
    by_heart = predict_logits(fitted.models[0], images, config, "cpu").argmax(1) == labels
    assert by_heart[~unseen].mean() > 0.9
    assert by_heart[unseen].mean() < 0.3 and fitted.accuracy < 0.3


def test_each_image_is_scored_by_the_model_that_did_not_get_it(
    digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(digits[0][:30], digits[1][:30] % 3)
    trained: list[set[str]] = []
    train = module.train_classifier
    monkeypatch.setattr(
        module,
        "train_classifier",
        lambda paths, *rest: (trained.append({p.name for p in paths}), train(paths, *rest))[1],
    )
    columns = crossfit(manifest, quick, Job()).columns
    for path, fold in zip(manifest.paths(), columns["fold"], strict=True):
        assert [path.name in names for names in trained] == [k != fold for k in range(quick.folds)]


def test_copies_share_a_fold_and_the_order_of_the_rows_does_not_matter() -> None:
    labels = np.arange(60) % 3
    names = [f"image-{i}" for i in range(60)]
    folds = fold_of([*names, *names[:10]], np.concatenate([labels, labels[:10]]), 5, seed=0)
    np.testing.assert_array_equal(folds[60:], folds[:10])
    np.testing.assert_array_equal(fold_of(names[::-1], labels[::-1], 5, seed=0)[::-1], folds[:60])
    assert not np.array_equal(fold_of(names, labels, 5, seed=1), folds[:60])
    assert all(np.bincount(labels[folds[:60] == k]).tolist() == [4, 4, 4] for k in range(5))


def test_classes_with_few_images(digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest) -> None:
    """20 images of class 0, two of class 1, one of class 2, none of class 3."""
    labels = np.array([0] * 20 + [1, 1, 2])
    fitted = crossfit(make_manifest(digits[0][:23], labels, NAMES[:4]), quick, Job())
    assert len(fitted.models) == 3
    assert fitted.columns["fold"][20] != fitted.columns["fold"][21]
    assert np.isnan(fitted.columns["difficulty"]).tolist() == [False] * 22 + [True]
    assert not fitted.columns["suspect_label"][22]
    assert fitted.columns["predicted"][22] >= 0


def test_there_are_never_more_folds_than_images_of_a_class() -> None:
    assert set(fold_of(list("abcde"), np.array([0, 0, 1, 1, 1]), 10, seed=0)) == {0, 1, 2}


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [-1, 0, 0, -1]])
def test_too_little_to_learn_from(labels: list[int]) -> None:
    with pytest.raises(UsageError, match="need 2 classes"):
        fold_of([f"{i}" for i in range(4)], np.array(labels), 5, seed=0)


def test_the_loss_is_told_beside_the_progress_of_all_folds(
    digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest
) -> None:
    told: list[tuple[str, str]] = []
    crossfit(make_manifest(digits[0][:30], digits[1][:30] % 3), quick, Job(detail=lambda *said: told.append(said)))
    assert len(told) == quick.folds * quick.repeats and {what for what, _ in told} == {"cross-fitting"}
    assert all(text.startswith("loss ") and float(text.split()[1]) > 0 for _, text in told)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [(WEIGHTS, b"", b""), (WEIGHTS, None, b""), (DESCRIPTION, None, b""), (DESCRIPTION, b"erature", b"eraturf"),
     (DESCRIPTION, b'"image_size": 32', b'"image_size": 36'), (DESCRIPTION, b"zero", b"zerp")],
)  # fmt: skip
def test_a_finished_classifier_that_has_changed_is_trained_again(
    digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, old: bytes | None, new: bytes,
) -> None:  # fmt: skip
    """old: what becomes `new` in its file; empty = one bit of the last weight changes; None = the file is gone."""
    trained: list[int] = []
    train = module.train_classifier
    monkeypatch.setattr(module, "train_classifier", lambda *given: (trained.append(1), train(*given))[1])
    config = quick.model_copy(update={"steps": 1, "folds": 2, "repeats": 1})
    manifest, said = make_manifest(digits[0][:12], digits[1][:12] % 3), []
    through = crossfit(manifest, config, Job(), tmp_path)
    (file,) = tmp_path.glob(f"*/1/{name}")
    content = file.read_bytes()
    if old is None:
        file.unlink()
    elif old:
        assert old in content
        file.write_bytes(content.replace(old, new))
    else:
        file.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    again = crossfit(manifest, config, Job(warn=said.append), tmp_path)
    assert len(trained) == 3 and len(said) == 1 and "is trained again" in said[0]
    assert np.array_equal(again.columns["difficulty"], through.columns["difficulty"], equal_nan=True)
    crossfit(manifest, config, Job(warn=pytest.fail), tmp_path)
    assert len(trained) == 3
