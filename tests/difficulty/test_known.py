"""What a scorer finds in the images of a manifest: by kept features where it stands on such, else image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty import known
from dcdm_cli.difficulty.crossfit import crossfit
from dcdm_cli.difficulty.feature_cache import FeatureCache
from dcdm_cli.difficulty.known import found_in
from dcdm_cli.difficulty.scorer import Scorer, save_scorer
from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.evaluation.quality import measured_difficulty
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig
from tests.difficulty.conftest import NAMES, MakeManifest

Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def images(digits: Digits, make_manifest: MakeManifest) -> Manifest:
    return make_manifest(digits[0][:40], digits[1][:40])


@pytest.fixture
def scorer(images: Manifest, quick: ScoreConfig, tmp_path: Path) -> Path:
    save_scorer(tmp_path / "scorer", crossfit(images, quick, Job()), NAMES, quick)
    return tmp_path / "scorer"


def test_networks_look_at_images_in_parts_and_tell_of_all(
    images: Manifest, scorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "CHUNK", 16)
    told: list[tuple[int, int]] = []
    job = Job(progress=lambda _, done, total: told.append((done, total)))
    asked = Scorer.load(scorer)
    found = found_in(images, asked, FeatureCache(tmp_path / "features"), job, "nothing yet")
    whole = asked.measure(images.paths(), images.column("label"))
    np.testing.assert_allclose(found.difficulty, whole.difficulty, atol=1e-5)
    assert np.array_equal(found.predicted, whole.predicted)
    assert told == [(16, 40), (32, 40), (40, 40)] and not (tmp_path / "features").exists()


def test_a_stop_says_what_is_finished(images: Manifest, scorer: Path, tmp_path: Path) -> None:
    job = Job(stop_signal=lambda: "SIGINT")
    with pytest.raises(InterruptedRunError, match="the images are finished"):
        found_in(images, Scorer.load(scorer), FeatureCache(tmp_path / "features"), job, "the images are finished")


def test_no_images_are_no_error(images: Manifest, scorer: Path, tmp_path: Path) -> None:
    none = images.select(np.zeros(0, np.int64))
    found = found_in(none, Scorer.load(scorer), FeatureCache(tmp_path / "features"), Job(), "nothing yet")
    assert len(found.difficulty) == len(found.predicted) == 0


def test_what_generation_measured_is_not_asked_again(images: Manifest, scorer: Path, tmp_path: Path) -> None:
    measured = np.full(len(images), 0.25, np.float32)
    measured[:3] = np.nan
    for path in images.paths()[3:]:
        path.unlink()
    rows = images.with_columns({"measured_difficulty": measured})
    found = measured_difficulty(scorer, rows, FeatureCache(tmp_path / "features"), Job())
    alone = Scorer.load(scorer).measure(images.paths()[:3], images.column("label")[:3]).difficulty
    np.testing.assert_allclose(found, [*alone, *measured[3:]], atol=1e-5)
