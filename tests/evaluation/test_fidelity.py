"""Likeness and coverage on features whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dcdm_cli.difficulty.classifier import build_classifier, preprocessing_of
from dcdm_cli.evaluation import fidelity as module
from dcdm_cli.evaluation.features import features_of
from dcdm_cli.evaluation.fidelity import density_coverage, fidelity, frechet, inception
from dcdm_cli.run.settings import ClassifierConfig

RNG = np.random.default_rng(0)
REAL, SAME, FAR = RNG.normal(size=(300, 8)), RNG.normal(size=(300, 8)), RNG.normal(5, 1, (300, 8))


def test_the_same_distribution_scores_well_and_another_badly() -> None:
    same, far = fidelity(SAME, REAL), fidelity(FAR, REAL)
    assert same["frechet"] < 0.5 and far["frechet"] > 100
    assert abs(same["kid"]) < 100 < far["kid"]
    for name in ("precision", "recall", "coverage"):
        assert same[name] > 0.7 and far[name] < 0.1
    assert same["density"] == pytest.approx(1, abs=0.2) and far["density"] == 0
    assert (same["generated"], same["reference"]) == (300, 300)


def test_repeating_the_typical_is_precise_and_covers_little() -> None:
    dull = fidelity(REAL[:3].repeat(100, axis=0) + RNG.normal(0, 1e-3, (300, 8)), REAL)
    assert dull["precision"] == 1.0 and dull["recall"] < 0.2 and dull["coverage"] < 0.3


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(1)
    a = torch.from_numpy(rng.normal(0, 1, (200_000, 2)))
    b = torch.from_numpy(rng.normal([1, 0], [2, 1], (200_000, 2)))
    assert frechet(a, b) == pytest.approx(1 + (2 - 1) ** 2, abs=0.05)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_density_and_coverage_by_hand() -> None:
    """Real 0, 1, 3 with k = 1: balls of radius 1, 1, 2. Generated 0.5 lies in the first two, 9 in none."""
    real, made = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [9.0]])
    density, coverage = density_coverage(made.double(), real.double(), k=1)
    assert density == pytest.approx((2 + 0) / 2) and coverage == pytest.approx(2 / 3)


def test_too_few_images_have_no_numbers() -> None:
    assert fidelity(SAME[:4], REAL)["frechet"] is None


def test_features_are_what_the_last_layer_sees() -> None:
    settings = {"model": "resnet10t", "image_size": 32}
    config = ClassifierConfig.model_validate(settings | {"model_args": {"channels": [8, 12, 16, 32], "stem_width": 8}})
    model = build_classifier(config, 3).eval()
    images = RNG.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    from dcdm_cli.difficulty.classifier import predict_logits

    seen = features_of(model, images, preprocessing_of(model, config), "cpu")
    logits = torch.from_numpy(seen) @ model.fc.weight.T + model.fc.bias  # type: ignore[union-attr,operator]
    assert np.allclose(logits.detach().numpy(), predict_logits(model, images, config, "cpu"), atol=1e-4)


def test_inception_is_used_where_its_weights_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_: None)
    assert inception() is None
    network = timm.create_model(module.INCEPTION.split(".")[0], pretrained=False)
    file = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_: str(file))
    loaded = inception()
    assert loaded is not None
    Image.new("RGB", (40, 40), (9, 99, 9)).save(tmp_path / "a.png")
    assert features_of(loaded[0], [tmp_path / "a.png"], loaded[1], "cpu").shape == (1, 2048)
