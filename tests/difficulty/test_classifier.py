from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dcdm_cli.data.images import DecodeOptions, decode_options, set_decode_options
from dcdm_cli.difficulty import classifier
from dcdm_cli.difficulty.classifier import (
    DESCRIPTION,
    WEIGHTS,
    LabelledImages,
    batch_rows,
    build_classifier,
    load_classifier,
    predict_logits,
    preprocessing_of,
    save_classifier,
    train_classifier,
)
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.errors import InterruptedRunError, MismatchError, NotFoundError, NumericalError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig, ScoreConfig
from tests.difficulty.conftest import NAMES, MakeManifest

Digits = tuple[np.ndarray, np.ndarray]


def test_digits_are_learnt(digits: Digits, network: ScoreConfig) -> None:
    images, labels = digits
    steps: list[tuple[str, int, int]] = []
    model = train_classifier(images[:200], labels[:200], 10, network, 0, "cpu", lambda *step: steps.append(step))
    logits = predict_logits(model, images[200:], network, "cpu")
    assert logits.shape == (400, 10) and logits.dtype == np.float32
    assert (logits.argmax(1) == labels[200:]).mean() > 0.9
    assert not model.training
    assert [done for _, done, total in steps if total == network.steps] == list(range(1, network.steps + 1))


def test_same_seed_same_weights_and_the_global_generators_are_left_alone(digits: Digits, quick: ScoreConfig) -> None:
    images, labels = digits[0][:40], digits[1][:40]
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    first = train_classifier(images, labels, 10, quick, 7, "cpu")
    predict_logits(first, images, quick, "cpu")
    assert (torch.rand(1), random.random()) == expected
    second, other = (train_classifier(images, labels, 10, quick, seed, "cpu") for seed in (7, 8))
    logits = [predict_logits(model, images, quick, "cpu") for model in (first, second, other)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


def test_the_order_of_the_files_does_not_matter(
    digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest
) -> None:
    manifest = make_manifest(digits[0][:30], digits[1][:30])
    paths, labels, back = manifest.paths(), digits[1][:30], np.arange(29, -1, -1)
    ordered = train_classifier(paths, labels, 10, quick, 0, "cpu")
    reversed_ = train_classifier([paths[i] for i in back], labels[back], 10, quick, 0, "cpu")
    np.testing.assert_array_equal(
        predict_logits(ordered, paths, quick, "cpu"), predict_logits(reversed_, paths, quick, "cpu")
    )


def test_where_two_folders_of_images_lie_does_not_matter(digits: Digits, quick: ScoreConfig, tmp_path: Path) -> None:
    """As a run's own images beside the real ones, when the run folder is moved."""

    def learnt(real: str, made: str) -> np.ndarray:
        paths = [
            tmp_path / place / f"{'real' if i % 2 else 'made'}-{i:02d}.png" for i, place in enumerate((made, real) * 15)
        ]
        for path, image in zip(paths, digits[0], strict=False):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
        model = train_classifier(paths, digits[1][:30], 10, quick, 0, "cpu")
        return predict_logits(model, digits[0][:5], quick, "cpu")

    np.testing.assert_array_equal(learnt("b-photos", "c-run"), learnt("b-photos", "a-run"))


def test_files_pictures_and_arrays_get_the_same_logits(
    digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest
) -> None:
    images = digits[0][:5]
    model = build_classifier(quick, 10).eval()
    of_files = predict_logits(model, make_manifest(images, digits[1][:5]).paths(), quick, "cpu")
    for same in (images, [Image.fromarray(image) for image in images]):
        np.testing.assert_array_equal(of_files, predict_logits(model, same, quick, "cpu"))
    np.testing.assert_allclose(of_files, predict_logits(model, images, quick, "cpu", batch_size=2), atol=1e-5)
    assert predict_logits(model, images[:0], quick, "cpu").shape == (0, 10)


def test_the_whole_image_reaches_the_network(quick: ScoreConfig) -> None:
    image = Image.new("RGB", (32, 32))
    image.putpixel((0, 0), (255, 0, 0))
    pixels = preprocessing_of(build_classifier(quick, 2), quick).eval_transform()(image)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_every_step_has_a_full_batch_and_every_pass_every_image() -> None:
    rows = batch_rows(count=10, batch_size=4, steps=5, seed=0)
    assert rows.shape == (5, 4)
    assert sorted(rows.ravel()[:10]) == sorted(rows.ravel()[10:]) == list(range(10))
    assert batch_rows(count=3, batch_size=64, steps=2, seed=0).shape == (2, 3)


def test_images_are_decoded_once_when_they_fit_and_reduced_when_large(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (300, 200), "red").save(path)
    kept = LabelledImages([path], np.array([3]), lambda image: torch.tensor(image.size), max_side=64, keep=True)
    path.unlink()
    assert (kept[0][0].tolist(), kept[0][1]) == ([100, 67], 3)
    with pytest.raises(UsageError, match=r"large\.png can no longer be read"):
        _ = LabelledImages([path], None, lambda image: torch.tensor(image.size))[0]


def test_a_transformer_is_built_for_the_image_size() -> None:
    config = ClassifierConfig.model_validate({"model": "test_vit", "image_size": 32})
    assert build_classifier(config, 3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_an_unknown_architecture_is_an_error_that_names_the_nearest(quick: ScoreConfig) -> None:
    with pytest.raises(UsageError, match="resnet10x") as caught:
        build_classifier(quick.model_copy(update={"model": "resnet10x"}), 2)
    assert "resnet10t" in caught.value.hint
    with pytest.raises(UsageError, match="nonsense"):
        build_classifier(quick.model_copy(update={"model_args": {"nonsense": 1}}), 2)


def test_pretrained_weights_that_cannot_be_had(quick: ScoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(NotFoundError, match="offline") as caught:
        build_classifier(quick.model_copy(update={"pretrained": True}), 2)
    assert "pretrained = false" in caught.value.hint


def test_a_loss_that_explodes_is_a_numerical_error(digits: Digits, quick: ScoreConfig) -> None:
    with pytest.raises(NumericalError) as caught:
        train_classifier(
            digits[0][:20], digits[1][:20], 10, quick.model_copy(update={"lr": 1e38, "steps": 8}), 0, "cpu"
        )
    assert "learning rate" in caught.value.hint


@pytest.mark.parametrize(("count", "label"), [(1, 0), (4, 10), (4, -1)])
def test_training_data_that_do_not_fit(quick: ScoreConfig, count: int, label: int) -> None:
    with pytest.raises(UsageError):
        train_classifier(np.zeros((count, 32, 32, 3), np.uint8), np.full(count, label), 10, quick, 0, "cpu")


def test_round_trip(tmp_path: Path, digits: Digits, quick: ScoreConfig) -> None:
    model = train_classifier(digits[0][:20], digits[1][:20], 10, quick, 0, "cpu")
    save_classifier(model, tmp_path / "judge", NAMES, quick, temperature=1.5)
    stored = load_classifier(tmp_path / "judge")
    assert (stored.class_names, stored.temperature) == (NAMES, 1.5)
    assert stored.config.model_dump() == quick.model_dump(include=set(ClassifierConfig.model_fields))
    np.testing.assert_array_equal(
        predict_logits(model, digits[0][:9], quick, "cpu"),
        predict_logits(stored.model, digits[0][:9], stored.config, "cpu"),
    )
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == [DESCRIPTION, WEIGHTS]


def test_stored_weights_are_checked(tmp_path: Path, quick: ScoreConfig) -> None:
    save_classifier(build_classifier(quick, 3), tmp_path, "abc", quick)
    weights = load_file(tmp_path / WEIGHTS)

    def store(**changed: torch.Tensor | None) -> None:
        state = {k: v for k, v in (weights | changed).items() if v is not None}
        save_file({k.replace("__", "."): v for k, v in state.items()}, tmp_path / WEIGHTS)

    store(**{"fc.bias": torch.zeros(4), "fc.weight": None, "other": torch.zeros(1)})
    with pytest.raises(MismatchError, match=r"1 missing: fc\.weight; 1 unexpected: other; .* \(4,\) instead of \(3,\)"):
        load_classifier(tmp_path)
    store(**{"fc.bias": torch.full((3,), torch.nan)})
    with pytest.raises(NumericalError):
        load_classifier(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(MismatchError, match="not a whole safetensors file"):
        load_classifier(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(NotFoundError):
        load_classifier(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"config": {"steps": 0}})])
def test_a_damaged_description(tmp_path: Path, content: str) -> None:
    (tmp_path / DESCRIPTION).write_text(content)
    with pytest.raises(MismatchError):
        load_classifier(tmp_path)


def test_a_gpu_gets_helpers_for_large_images_and_for_many_small_ones() -> None:
    files = classifier.LabelledImages([Path("a.png")] * 4, None, torch.as_tensor)

    def helpers(device: str, side: int, reads: int, images: classifier.LabelledImages = files) -> int:
        return classifier._loader(images, torch.device(device), side, reads).num_workers

    many = classifier.MANY + 1
    assert helpers("cuda", 224, 10) == helpers("cuda", 32, many) == min(8, torch.get_num_threads())
    assert helpers("cuda", 32, 10) == helpers("cpu", 224, many) == 0
    made = classifier.LabelledImages(np.zeros((4, 8, 8, 3), np.uint8), None, torch.as_tensor)
    assert helpers("cuda", 224, 10, made) == helpers("cuda", 32, many, made) == 0  # scored where they were made


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_classifier_that_was_stopped_goes_on_to_the_same_weights(
    digits: Digits, network: ScoreConfig, tmp_path: Path, stop: int
) -> None:
    """Within one training, with all that is random in it: rotation, crop, policy, Mixup, dropout, batch statistics."""
    config = network.model_copy(
        update={"steps": 7, "batch_size": 8, "mixup": 0.2, "policy": "rand-m7-mstd0.5-inc1", "hflip": 0.5}
        | {"model_args": {**network.model_args, "drop_rate": 0.3}}
    )
    images, labels = digits[0][:30], digits[1][:30]
    through = weights_of(train_classifier(images, labels, 10, config, 5, "cpu"))
    asked, seen = iter([None] * (len(images) + stop - 1)), []
    keep = Keep(Job(stop_signal=lambda: next(asked, "SIGTERM")), tmp_path / "begun" / "0")
    with pytest.raises(InterruptedRunError, match=f"goes on at step {stop} of 7") as caught:
        train_classifier(images, labels, 10, config, 5, "cpu", keep=keep)
    assert caught.value.code == 143 and [p.name for p in keep.folder.iterdir()] == [f"step-{stop:08d}"]
    again = Keep(Job(), keep.folder)
    resumed = train_classifier(images, labels, 10, config, 5, "cpu", lambda _, done, total: seen.append(done), again)
    assert seen == list(range(stop + 1, 8))
    assert all(torch.equal(through[name], value) for name, value in weights_of(resumed).items())
    again.forget()
    assert list(tmp_path.iterdir()) == []


def test_another_training_does_not_go_on_from_a_checkpoint(digits: Digits, quick: ScoreConfig, tmp_path: Path) -> None:
    images, labels, seen = digits[0][:20], digits[1][:20], []
    asked = iter([None] * 21)
    with pytest.raises(InterruptedRunError):
        keep = Keep(Job(stop_signal=lambda: next(asked, "SIGINT")), tmp_path / "begun")
        train_classifier(images, labels, 10, quick, 0, "cpu", keep=keep)
    keep = Keep(Job(), tmp_path / "begun")
    train_classifier(images, labels, 10, quick, 1, "cpu", lambda _, done, total: seen.append(done), keep)
    assert seen == [1, 2, 3]


def test_a_stop_while_images_are_read_is_heard(digits: Digits, quick: ScoreConfig) -> None:
    with pytest.raises(InterruptedRunError, match="has not begun"):
        train_classifier(digits[0], digits[1], 10, quick, 0, "cpu", keep=Keep(Job(stop_signal=lambda: "SIGINT")))


def test_weights_that_are_not_finite_are_no_classifier(digits: Digits, quick: ScoreConfig) -> None:
    """The loss of the last step is that of the weights before it."""
    wild = quick.model_copy(update={"steps": 1, "lr": float("inf")})
    with pytest.raises(NumericalError, match="weights are not finite") as caught:
        train_classifier(digits[0][:20], digits[1][:20], 10, wild, 0, "cpu")
    assert caught.value.code == 4 and "learning rate" in caught.value.hint


def test_classifiers_see_the_whole_of_a_wide_image_where_the_run_says_so() -> None:
    wide = Image.new("RGB", (64, 16), "black")
    wide.paste("white", (0, 0, 16, 16))
    before = decode_options()
    try:
        sizes = {}
        for fit in ("crop", "pad", "stretch"):
            set_decode_options(DecodeOptions(fit=fit))
            sizes[fit] = LabelledImages([wide], None, lambda image: torch.tensor(image.size))[0][0].tolist()
    finally:
        set_decode_options(before)
    assert sizes == {"crop": [64, 16], "pad": [64, 64], "stretch": [64, 64]}
