"""The second classifier that labels are checked by: packaged, a head on features, the user's own, CLIP."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from dcdm_cli.difficulty.classifier import build_classifier, logits_of, save_classifier
from dcdm_cli.difficulty.feature_folds import Seen, head_on_all
from dcdm_cli.difficulty.label_check import (
    DESCRIPTION,
    open_label_check,
    save_clip_check,
    save_digits_check,
    save_features_check,
    save_own_check,
)
from dcdm_cli.difficulty.scoring import Scoring, seen_features
from dcdm_cli.difficulty.zero_shot import open_zero_shot
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig, ScoreConfig

from .conftest import NAMES, MakeManifest

Digits = tuple[np.ndarray, np.ndarray]
TEN = tuple(str(digit) for digit in range(10))


def test_the_packaged_classifier_knows_digits_it_never_saw(digits: Digits, tmp_path: Path) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    save_digits_check(tmp_path / "check", TEN)
    shows = open_label_check(tmp_path / "check")
    right, wrong = shows(images, labels), shows(images, (labels + 1) % 10)
    assert right.dtype == bool and right.mean() > 0.95 and wrong.mean() < 0.05


def test_classes_are_aligned_by_name_and_others_compete(digits: Digits, tmp_path: Path) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    save_digits_check(tmp_path / "check", ("7", "0"))
    shows = open_label_check(tmp_path / "check")
    assert shows(images[labels == 7], np.zeros((labels == 7).sum(), int)).mean() > 0.9
    assert shows(images[labels == 0], np.ones((labels == 0).sum(), int)).mean() > 0.9
    others = ~np.isin(labels, (0, 7))
    assert shows(images[others], np.zeros(others.sum(), int)).mean() < 0.05, "a 3 is no 7, though no class of the run"


def test_classes_that_it_does_not_know_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"digits classifier cannot check these labels: .* lacks 1 .*: ten"
    ) as caught:
        save_digits_check(tmp_path / "check", ("1", "ten"))
    assert "--check clip" in caught.value.hint and not (tmp_path / "check").exists()


def test_a_head_on_frozen_features_is_kept_with_the_run(
    digits: Digits, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    rows = make_manifest(digits[0][:100], digits[1][:100])
    config = ScoreConfig.model_validate({"feature_size": 32})
    table, extractor = seen_features(rows, config, Scoring(tmp_path / "spool").features, Job())
    head = head_on_all(Seen.of(table, rows), extractor, 0, "cpu")
    save_features_check(tmp_path / "check", head, NAMES, extractor)
    shutil.rmtree(tmp_path / "spool")
    images, labels = digits[0][200:300], digits[1][200:300]
    shows = open_label_check(tmp_path / "check")
    assert shows(images, labels).mean() > 0.6 and shows(images, (labels + 1) % 10).mean() < 0.2


def own_classifier(folder: Path, names: tuple[str, ...]) -> Path:
    config = ClassifierConfig.model_validate({"model": "resnet10t", "model_args": {"channels": [8, 8, 8, 8]}})
    torch.manual_seed(0)
    save_classifier(build_classifier(config, len(names)), folder, names, config)
    file = folder / "own.safetensors"
    shutil.move(folder / "model.safetensors", file)
    file.with_suffix(".json").write_text(
        '{"model": "resnet10t", "model_args": {"channels": [8, 8, 8, 8]}, "image_size": 32}'
    )
    return file


def test_the_users_own_file_is_copied(digits: Digits, tmp_path: Path) -> None:
    file = own_classifier(tmp_path / "mine", ("cat", *NAMES))
    save_own_check(tmp_path / "check", file, NAMES, ClassifierConfig.model_validate({}))
    shutil.rmtree(tmp_path / "mine")
    images = digits[0][:50]
    shows = open_label_check(tmp_path / "check")
    seen = np.stack([shows(images, np.full(50, label)) for label in range(10)])
    assert (seen.sum(0) <= 1).all(), "one class at most is seen in an image: a cat is none of ours"


def test_an_own_file_for_other_classes_is_refused(tmp_path: Path) -> None:
    file = own_classifier(tmp_path / "mine", ("cat", "dog"))
    with pytest.raises(MismatchError, match="lacks 10 of the 10 classes"):
        save_own_check(tmp_path / "check", file, NAMES, ClassifierConfig.model_validate({}))
    with pytest.raises(NotFoundError, match="no classifier at"):
        save_own_check(tmp_path / "check", tmp_path / "gone.onnx", NAMES, ClassifierConfig.model_validate({}))
    assert not (tmp_path / "check").exists()


WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "red", "green", "blue"]
COLOURS = ("red", "green", "blue")
CAPTIONS = [f"a photo of a {colour}" for colour in COLOURS]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A tiny CLIP of random weights, as the hub has them, that has learned the three colours."""
    folder = tmp_path / "clip"
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**small, **ids, "vocab_size": len(WORDS), "max_position_embeddings": 12}
    vision = {**small, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    size = {"height": 16, "width": 16}
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size), PreTrainedTokenizerFast(tokenizer_object=words, **names)
    )
    batch = processor(text=CAPTIONS, images=list(colours(0)), return_tensors="pt", padding=True)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def colours(noise: int) -> np.ndarray:
    """uint8 [3, 32, 32, 3]: red, green, blue."""
    pure = np.broadcast_to(np.eye(3)[:, None, None] * 200, (3, 32, 32, 3))
    return (pure + np.random.default_rng(noise).integers(0, 40, (3, 32, 32, 3))).astype(np.uint8)


def test_clip_compares_images_with_captions(clip: Path, tmp_path: Path) -> None:
    save_clip_check(tmp_path / "check", str(clip), CAPTIONS, COLOURS)
    assert {file.name for file in (tmp_path / "check").iterdir()} == {DESCRIPTION}
    shows = open_label_check(tmp_path / "check")
    images = colours(7)
    assert shows(images, np.arange(3)).all() and not shows(images, np.array([1, 2, 0])).any()


def test_zero_shot_is_transformers_own(clip: Path) -> None:
    network, preprocessing, revision = open_zero_shot(str(clip), CAPTIONS)
    ours = logits_of([network], colours(7), preprocessing, "cpu")[0]
    processor, model = CLIPProcessor.from_pretrained(clip), CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        theirs = model(**processor(text=CAPTIONS, images=list(colours(7)), return_tensors="pt", padding=True))
    np.testing.assert_allclose(ours, theirs.logits_per_image.numpy(), rtol=1e-3, atol=1e-3)
    assert revision is None


def test_a_clip_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"cannot load the CLIP model 'nobody/nothing'") as caught:
        save_clip_check(tmp_path / "check", "nobody/nothing", CAPTIONS, COLOURS)
    assert "\n" not in str(caught.value) and "--check-model FOLDER" in caught.value.hint


def test_another_kind_of_model_is_no_clip(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="is no CLIP model: it is of type bert"):
        save_clip_check(tmp_path / "check", str(tmp_path), CAPTIONS, COLOURS)


def test_the_check_of_another_job_stays(tmp_path: Path) -> None:
    """Jobs that share nothing but the folder may make it at the same time: the first one's is not swapped out below
    whoever reads it."""
    save_digits_check(tmp_path / "check", TEN)
    before = (tmp_path / "check" / DESCRIPTION).stat().st_ino
    save_digits_check(tmp_path / "check", TEN)
    assert (tmp_path / "check" / DESCRIPTION).stat().st_ino == before
    assert [file.name for file in tmp_path.iterdir()] == ["check"]
