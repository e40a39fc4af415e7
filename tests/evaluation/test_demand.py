"""What is hard becomes what is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.evaluation.demand import BINS, demand, newest_difficulty
from dcdm_cli.evaluation.downstream import NOTHING, Samples
from dcdm_cli.evaluation.other_scores import in_sample, rescaled, shuffled
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig, ScoreConfig

QUICK = {
    "model": "resnet10t", "model_args": {"channels": [8, 12, 16, 32], "stem_width": 8}, "image_size": 32, "steps": 30,
    "batch_size": 16, "lr": 6e-3, "scale": [0.8, 1.0], "hflip": 0.0,
}  # fmt: skip


def test_hard_classes_and_hard_bins_get_most_and_nothing_lies_beyond_the_cap() -> None:
    label = np.repeat([0, 1], 100)
    difficulty = np.tile(np.linspace(0, 0.99, 100), 2).astype(np.float32)
    newest = np.where(label == 0, 0.01, difficulty)
    asked = demand(newest, difficulty, label, 2, cap=0.75)
    assert asked.weights.shape == (2, BINS) and asked.weights.sum() == pytest.approx(1)
    assert asked.weights[1].sum() > 0.9 and (asked.weights[:, :8] > 0).all() and (asked.weights[:, 8:] == 0).all()
    labels, targets = asked.draw(5000, np.random.default_rng(0))
    assert targets.dtype == np.float32 and targets.min() >= 0 and targets.max() <= 0.75
    assert (labels == 1).mean() == pytest.approx(asked.weights[1].sum(), abs=0.02)
    assert targets[labels == 1].mean() > 0.4
    again = asked.draw(5000, np.random.default_rng(0))
    assert (again[0] == labels).all() and (again[1] == targets).all()
    rows = asked.rows(100)
    assert sum(row["easy"] + row["medium"] + row["hard"] for row in rows) == pytest.approx(100, abs=0.5)


def test_when_nothing_is_hard_or_scored_all_cells_are_asked_alike() -> None:
    asked = demand(np.full(4, np.nan), np.full(4, np.nan), np.array([0, 0, 1, 1]), 2, cap=0.5)
    assert np.allclose(asked.weights[:, :5], 0.1)


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Dark and bright pictures; the last four of each class are alike and tell nothing."""
    folder, rng, paths = tmp_path_factory.mktemp("shades"), np.random.default_rng(0), []
    for label, shade in enumerate((60, 190)):
        for i in range(16):
            level = shade if i < 12 else 125
            pixels = np.clip(rng.normal(level, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
            paths.append(folder / f"{label}-{i:02d}.png")
            Image.fromarray(pixels).save(paths[-1])
    return Samples(paths, np.repeat([0, 1], 16))


def test_the_newest_classifier_is_asked_about_images_it_has_not_seen(shades: Samples) -> None:
    config = ClassifierConfig.model_validate(QUICK)
    hard = newest_difficulty(shades, NOTHING, 2, config, 2, 0, Job())
    ambiguous = np.tile(np.arange(16) >= 12, 2)
    assert hard.shape == (32,) and hard[ambiguous].mean() > hard[~ambiguous].mean() + 0.2
    rows = [*range(12), *range(16, 28)]
    extra = Samples([shades.paths[i] for i in rows], 1 - shades.labels[rows])
    misled = newest_difficulty(shades, extra + extra + extra, 2, config, 2, 0, Job())
    assert misled[~ambiguous].mean() > hard[~ambiguous].mean() + 0.3  # it did learn from the extra images


PROBS = np.array([[0.98, 0.01, 0.01], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [1e-9, 1 - 2e-9, 1e-9]])


def test_other_scores_lie_between_easy_and_hard() -> None:
    labels = np.zeros(4, np.int64)
    margin, loss, entropy = (rescaled(PROBS, labels, kind) for kind in ("margin", "loss", "entropy"))
    assert margin == pytest.approx([0.015, 0.45, 0.75, 1.0], abs=1e-3)
    assert loss[0] < loss[1] < loss[2] < loss[3] == 1.0
    assert entropy[1] > 0.8 and entropy[3] == pytest.approx(0, abs=1e-5)  # certain, and wrong: entropy does not see it
    assert all(values.min() >= 0 and values.max() <= 1 for values in (margin, loss, entropy))


def test_shuffled_views_stay_together_and_in_their_class() -> None:
    labels = np.array([0, 1] * 6)
    own = np.arange(12) / 100
    views = np.concatenate([own, own + 0.5])
    mixed = shuffled(views, labels, seed=0).reshape(2, 12)
    assert np.allclose(mixed[1], mixed[0] + 0.5) and not np.array_equal(mixed[0], own)
    for label in (0, 1):
        assert sorted(mixed[0][labels == label]) == sorted(own[labels == label])
    assert np.array_equal(shuffled(views, labels, 0), mixed.ravel())


def test_in_sample_scores_pile_up_at_zero(tmp_path: Path) -> None:
    """Colours that say nothing about the class: learnt by heart they look easy, unseen they are what they are."""
    rng, views = np.random.default_rng(1), []
    for _ in range(32):
        blocks = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
        views.append(blocks.resize((32, 32), Image.Resampling.NEAREST))
    real = Samples([tmp_path / f"{i:02d}.png" for i in range(32)], np.repeat([0, 1], 16))
    for view, path in zip(views, real.paths, strict=True):
        view.save(path)
    config = ScoreConfig.model_validate({**QUICK, "steps": 120})
    values = in_sample((real.paths, real.labels), 2, [*views, *views], config, Job())
    assert values.shape == (64,) and np.allclose(values[:32], values[32:], atol=1e-4)
    alike = ClassifierConfig.model_validate({**QUICK, "steps": 120})
    out_of_fold = newest_difficulty(real, NOTHING, 2, alike, 2, 0, Job())
    assert values.mean() < 0.05 < 0.4 < out_of_fold.mean()
