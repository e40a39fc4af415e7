"""Loading a Stable Diffusion layout from a folder, and refusing everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.model.base import BaseModel, encode_text, load_base
from dcdm_cli.model.packaged import TINY_BASE, TINY_NAME
from dcdm_cli.model.tokens import load_tokenizer


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_BASE, tmp_path / "base"))


def edit(folder: Path, part: str, **changes: object) -> None:
    file = next((folder / part).glob("*config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_base_is_frozen_and_knows_its_size(tiny: BaseModel) -> None:
    assert not any(p.requires_grad for part in (tiny.unet, tiny.vae, tiny.text_encoder) for p in part.parameters())
    assert not tiny.unet.training
    assert tiny.latent_size == 4
    assert tiny.unet.dtype == tiny.vae.dtype == torch.float32


def test_half_precision_leaves_the_vae_alone(tiny: BaseModel) -> None:
    half = load_base(TINY_NAME, dtype="bf16")
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    assert half.fingerprint == tiny.fingerprint


def test_the_fingerprint_follows_the_weights_not_the_place(tiny: BaseModel, copy: Path) -> None:
    moved = load_base(str(copy))
    assert moved.fingerprint == tiny.fingerprint
    with torch.no_grad():
        next(moved.unet.parameters()).add_(0.5)
    moved.unet.save_pretrained(copy / "unet")
    assert load_base(str(copy)).fingerprint != tiny.fingerprint


def test_other_betas_are_another_base(tiny: BaseModel, copy: Path) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))
    assert load_base(str(copy)).fingerprint != tiny.fingerprint


def test_captions_become_one_encoding_per_token(tiny: BaseModel) -> None:
    made = encode_text(tiny, ["a photo of the digit seven", ""])
    assert made.shape == (2, 16, 64)
    assert not torch.allclose(made[0], made[1])


def test_a_missing_base_names_what_was_asked_for() -> None:
    with pytest.raises(NotFoundError, match="cannot load the base model '/no/such/base'") as caught:
        load_base("/no/such/base")
    assert caught.value.hint


def test_a_folder_without_a_part_is_refused(copy: Path) -> None:
    index = copy / "model_index.json"
    document = json.loads(index.read_text())
    del document["vae"]
    index.write_text(json.dumps(document))
    with pytest.raises(MismatchError, match="it has no vae"):
        load_base(str(copy))


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("text_encoder/config.json", "weights of other sizes than its configs say"),
        ("tokenizer/tokenizer_config.json", "a text encoder for 16 tokens, and .* model_max_length is no number"),
    ],
)
def test_a_folder_without_a_config_is_refused(copy: Path, file: str, says: str) -> None:
    """Of either, transformers would take one of its own."""
    (copy / file).unlink()
    with pytest.raises(MismatchError, match=says) as caught:
        load_base(str(copy))
    assert "get it again" in caught.value.hint
    assert file.startswith("text_encoder") or load_tokenizer(str(copy)) is None


def test_damaged_weights_are_named(copy: Path) -> None:
    file = next((copy / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(NotFoundError, match="cannot load the base model"):
        load_base(str(copy))


def test_a_model_that_predicts_the_image_itself_is_refused(copy: Path) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(MismatchError, match="predicts 'sample'"):
        load_base(str(copy))


def test_an_inpainting_unet_is_refused(tiny: BaseModel, copy: Path) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_config({**tiny.unet.config, "in_channels": 9}).save_pretrained(copy / "unet")
    with pytest.raises(MismatchError, match="does not map 4 latent channels"):
        load_base(str(copy))


def test_the_tokenizer_loads_alone(copy: Path) -> None:
    tokenizer = load_tokenizer(str(copy))
    assert tokenizer is not None and tokenizer.model_max_length == 16
    assert load_tokenizer("/no/such/base") is None
