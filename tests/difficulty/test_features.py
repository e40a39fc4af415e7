"""The packaged network, others in its place, and the cache of what they see."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dcdm_cli.data.images import DecodeOptions, decode_options, set_decode_options
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty import feature_cache
from dcdm_cli.difficulty.classifier import build_classifier, logits_of, predict_logits, train_classifier
from dcdm_cli.difficulty.feature_cache import FeatureCache, looked_at
from dcdm_cli.difficulty.features import Extractor, Penultimate, open_extractor, save_extractor
from dcdm_cli.difficulty.packaged import ARCHITECTURE, FOLDER
from dcdm_cli.errors import InterruptedRunError, MismatchError, NotFoundError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig
from tests.difficulty.conftest import MakeManifest

Digits = tuple[np.ndarray, np.ndarray]
SMALL = {"channels": [8, 12, 16, 32], "stem_width": 8}
CONVENTION = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 32, 32], "classifier": "fc"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small network in timm's layout, with the classifier of another job."""
    folder = tmp_path / "net"
    folder.mkdir()
    network = timm.create_model("resnet10t", num_classes=7, **SMALL)
    save_file(network.state_dict(), folder / "model.safetensors")
    described(folder, CONVENTION)
    return folder


def described(folder: Path, convention: dict[str, object], architecture: object = "resnet10t") -> None:
    document = {"architecture": architecture, "model_args": SMALL, "pretrained_cfg": convention}
    (folder / "config.json").write_text(json.dumps(document))


def test_the_packaged_network_is_what_its_origin_says() -> None:
    origin = json.loads((FOLDER / "origin.json").read_text())
    weights = (FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == origin["sha256"] and len(weights) < 10 * 2**20
    assert "Apache" in origin["licence"] and "Apache" in (FOLDER / "LICENSE.txt").read_text()
    halves = {value.dtype for value in load_file(FOLDER / "model.safetensors").values() if value.is_floating_point()}
    assert halves == {torch.float16}


def test_the_packaged_network_tells_photographs_apart() -> None:
    """Crops of one photograph look more alike than crops of two: true of features, not of random weights."""
    from sklearn.datasets import load_sample_images

    crops = [
        image[top : top + 300, left : left + 300]
        for image in load_sample_images().images
        for top, left in ((0, 0), (100, 100), (60, 300))
    ]
    extractor = open_extractor("packaged", 96)
    assert (extractor.width, extractor.size) == (1280, 96) and "packaged" in str(extractor)
    seen = logits_of([extractor.network], [Image.fromarray(crop) for crop in crops], extractor.preprocessing, "cpu")[0]
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    alike = seen @ seen.T
    assert min(alike[:3, :3].min(), alike[3:, 3:].min()) > alike[:3, 3:].max()
    assert open_extractor("packaged").size == 160


def test_features_are_the_pooled_activations_in_half_precision(small: Path, digits: Digits) -> None:
    extractor = open_extractor(str(small))
    seen = logits_of([extractor.network], digits[0][:4], extractor.preprocessing, "cpu")[0]
    network = timm.create_model("resnet10t", num_classes=7, **SMALL).eval()
    network.load_state_dict(load_file(small / "model.safetensors"))
    pixels = (torch.from_numpy(digits[0][:4]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    np.testing.assert_allclose(seen, expected, rtol=2e-3, atol=2e-3)
    assert np.array_equal(seen, seen.astype(np.float16))


def test_the_width_is_that_of_the_layer_before_the_last() -> None:
    """Of MobileNetV3 that is another one than the last feature map's."""
    network = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    with torch.inference_mode():
        assert Penultimate(network)(torch.zeros(1, 3, 32, 32)).shape[1] == Penultimate(network).num_classes


def test_a_network_is_kept_with_what_rests_on_it(small: Path, tmp_path: Path) -> None:
    extractor = open_extractor(str(small), 40)
    save_extractor(extractor, tmp_path / "copy")
    again = open_extractor(str(tmp_path / "copy"), 40)
    assert again.key == extractor.key and again.width == extractor.width == 32
    assert open_extractor(str(small)).key != extractor.key  # of another size


def test_a_file_with_a_sidecar(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "eyes.safetensors"
    file.write_bytes((small / "model.safetensors").read_bytes())
    with pytest.raises(MismatchError, match="which network"):
        open_extractor(str(file))
    sidecar = {"model": "resnet10t", "model_args": SMALL}
    file.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(MismatchError, match=r"mean and std are missing") as caught:
        open_extractor(str(file))
    assert "eyes.json" in caught.value.hint
    file.with_suffix(".json").write_text(json.dumps(sidecar | {"mean": [0.5] * 3, "std": [0.25] * 3}))
    assert open_extractor(str(file), 32).key == open_extractor(str(small), 32).key


def test_transformers_are_brought_to_the_size(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    described(tmp_path, CONVENTION | {"classifier": "head", "input_size": [3, 160, 160]}, "test_vit")
    document = json.loads((tmp_path / "config.json").read_text()) | {"model_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert open_extractor(str(tmp_path)).size == 160 and open_extractor(str(tmp_path), 96).size == 96


def test_what_cannot_be_an_extractor(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resnet18x") as unknown:
        open_extractor("resnet18x")
    assert "resnet18" in unknown.value.hint
    with pytest.raises(NotFoundError, match="neither a folder"):
        open_extractor(str(tmp_path / "nowhere"))
    with pytest.raises(NotFoundError, match="no weights"):
        open_extractor(str(tmp_path / "no.safetensors"))
    with pytest.raises(NotFoundError, match="no pretrained weights") as offline:
        open_extractor("vit_small_patch14_reg4_dinov2.lvd142m")
    assert "features = packaged" in offline.value.hint
    described(small, {"input_size": [3, 32, 32]})
    with pytest.raises(MismatchError, match="mean and std") as caught:
        open_extractor(str(small))
    assert "config.json" in caught.value.hint
    for broken in ({"mean": [0.5, 0.5]}, {"std": [0, 0, 0]}, {"mean": "imagenet"}):
        described(small, CONVENTION | broken)
        with pytest.raises(MismatchError, match="three finite numbers") as caught:
            open_extractor(str(small))
        assert "config.json" in caught.value.hint
    described(small, CONVENTION, "resnet18")
    with pytest.raises(MismatchError, match="does not fit the model"):
        open_extractor(str(small))
    described(small, CONVENTION, 3)
    with pytest.raises(MismatchError, match="no architecture"):
        open_extractor(str(small))


def test_a_classifier_may_start_from_the_packaged_weights() -> None:
    config = ClassifierConfig(model="packaged", pretrained=True, image_size=64)
    started, stored = build_classifier(config, 3).state_dict(), load_file(FOLDER / "model.safetensors")
    assert torch.equal(started["conv_stem.weight"], stored["conv_stem.weight"].float())
    assert started["classifier.weight"].shape == (3, 1280) and not started["classifier.weight"].any()
    fresh = build_classifier(config.model_copy(update={"pretrained": False}), 3).state_dict()
    assert not torch.equal(fresh["conv_stem.weight"], started["conv_stem.weight"]) and fresh["classifier.weight"].any()
    assert ARCHITECTURE == "tf_efficientnet_lite0"


@pytest.mark.slow  # half a minute: backward passes through a network of real size
def test_fine_tuning_does_not_first_unlearn_what_the_packaged_network_knows(digits: Digits) -> None:
    images, labels = digits[0][:400], digits[1][:400]
    net = {"model": "packaged", "pretrained": True, "image_size": 32, "steps": 80, "batch_size": 32, "lr": 3e-4}
    config = ClassifierConfig.model_validate({**net, "hflip": 0.0})
    model = train_classifier(images[:200], labels[:200], 10, config, 0, "cpu")
    right = predict_logits(model, images[200:], config, "cpu").argmax(1) == labels[200:]
    assert right.mean() > 0.45  # with a random last layer 0.3


@pytest.fixture
def manifest(digits: Digits, make_manifest: MakeManifest) -> Manifest:
    images = digits[0][:20].copy()
    images[7] = 90
    return make_manifest(images, digits[1][:20])


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the network was asked about, call by call."""
    counts: list[int] = []
    real = feature_cache.looked_at

    def watched(extractor: Extractor, images: list[Path], *rest: object) -> np.ndarray:
        counts.append(len(images))
        return real(extractor, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(feature_cache, "looked_at", watched)
    monkeypatch.setattr(feature_cache, "CHUNK", 8)
    return counts


def test_each_image_is_looked_at_once(small: Path, manifest: Manifest, tmp_path: Path, looked: list[int]) -> None:
    cache, extractor, notes = FeatureCache(tmp_path / "cache"), open_extractor(str(small)), []
    job = Job(note=notes.append)
    first = cache.of(extractor, manifest.select(np.arange(12)), job)
    assert looked == [8, 4] and len(first) == 12
    rows = np.concatenate([np.arange(20)[::-1], [3, 3]])
    table = cache.of(extractor, manifest.select(rows), job)
    assert looked == [8, 4, 8]  # only the new ones; copies once
    expected = looked_at(extractor, manifest.paths())[:, :-1]
    np.testing.assert_allclose(table.take(np.arange(22)), expected[rows], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(
        np.concatenate([part for _, part in table.parts(5)]), expected[rows], rtol=2e-3, atol=1e-3
    )
    assert table.flat.tolist() == (rows == 7).tolist() and not notes
    cache.of(open_extractor(str(small), 40), manifest, job)
    assert "another network, size or version" in notes[0] and sum(looked) == 40


def test_images_that_are_looked_at_are_told_once(
    small: Path, manifest: Manifest, tmp_path: Path, looked: list[int]
) -> None:
    told = []
    job = Job(progress=lambda *said: told.append(said))
    FeatureCache(tmp_path / "cache").of(open_extractor(str(small)), manifest.select(np.arange(12)), job)
    assert told == [("looking at images", 8, 12), ("looking at images", 12, 12)]


def test_a_damaged_file_is_computed_again_and_nothing_else(
    small: Path, manifest: Manifest, tmp_path: Path, looked: list[int]
) -> None:
    cache, extractor, notes = FeatureCache(tmp_path / "cache"), open_extractor(str(small)), []
    before = cache.of(extractor, manifest, Job()).take(np.arange(20))
    file = sorted((tmp_path / "cache").rglob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-40])
    del looked[:]
    after = cache.of(extractor, manifest, Job(note=notes.append)).take(np.arange(20))
    assert sum(looked) in (4, 8) and "damaged" in notes[0]
    np.testing.assert_allclose(after, before, rtol=2e-3)


def test_a_stopped_look_goes_on(small: Path, manifest: Manifest, tmp_path: Path, looked: list[int]) -> None:
    cache, extractor = FeatureCache(tmp_path / "cache"), open_extractor(str(small))
    with pytest.raises(InterruptedRunError, match="features of 8 of 20 images are kept"):
        cache.of(extractor, manifest, Job(stop_signal=lambda: "SIGINT" if len(looked) == 2 else None))
    assert looked == [8, 8]
    cache.of(extractor, manifest, Job())
    assert looked == [8, 8, 8, 4]


def test_generated_images_are_known_by_what_they_show(small: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Their ids are of the plan: the same row made again is another picture."""
    row = {"sample_id": "abcd", "path": "made.png", "label": 0, "synthetic": True}
    made, seen = Manifest.from_rows([row], manifest.class_names, tmp_path), []
    for value in (20, 200):
        pixels = np.full((32, 32, 3), value, np.uint8)
        pixels[:9] = 0
        Image.fromarray(pixels).save(tmp_path / "made.png")
        seen.append(FeatureCache(tmp_path / "cache").of(open_extractor(str(small)), made, Job()).take(np.arange(1)))
    assert not np.allclose(seen[0], seen[1], rtol=1e-2)


def test_features_of_images_that_were_fitted_otherwise_are_others(
    small: Path, manifest: Manifest, tmp_path: Path, looked: list[int], request: pytest.FixtureRequest
) -> None:
    """A hash of the pixels does not tell how they are shown."""
    usual = decode_options()
    request.addfinalizer(lambda: set_decode_options(usual))
    cache, seen = FeatureCache(tmp_path / "cache"), []
    for options in (DecodeOptions(), DecodeOptions(reduce_to=8), DecodeOptions(max_pixels=10**6), DecodeOptions()):
        set_decode_options(options)
        seen.append(cache.of(open_extractor(str(small)), manifest, Job()).take(np.arange(20)))
    assert sum(looked) == 40 and np.array_equal(seen[0], seen[2]) and np.array_equal(seen[0], seen[3])
    assert not np.allclose(seen[0], seen[1], rtol=1e-2)


def test_grey_and_deep_images_are_seen_as_what_they_show(small: Path, digits: Digits, tmp_path: Path) -> None:
    grey = digits[0][0][:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    seen = looked_at(open_extractor(str(small)), [tmp_path / f"{name}.png" for name in ("grey", "deep", "rgb")])
    np.testing.assert_allclose(seen[:2], seen[[2, 2]], rtol=2e-3)
