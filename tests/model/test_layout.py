"""What a base may be, what it is warned about, and from where it can be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.layout import base_warnings, other_conditions
from dcdm_cli.model.packaged import TINY_BASE
from dcdm_cli.model.tokens import load_tokenizer

from .ldm_names import WEIGHTS, write_single_file
from .test_base import edit


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_BASE, tmp_path / "base"))


def refused(folder: Path) -> str:
    with pytest.raises(MismatchError) as caught:
        load_base(str(folder))
    assert "1.5, 2.1 or XL" in caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim = 8: it was distilled to take the guidance scale"),
        ({"num_class_embeds": 4}, "num_class_embeds = 4: it also takes a class or a noise level"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"encoder_hid_dim": 32}, "encoder_hid_dim = 32: it attends to something else"),
        (
            {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
            "addition_embed_type = 'text': it also takes a pooled embedding",
        ),
    ],
)
def test_another_condition_in_the_unet_is_named(
    tiny: BaseModel, copy: Path, changes: dict[str, Any], says: str
) -> None:
    UNet2DConditionModel.from_config({**tiny.unet.config, **changes}).save_pretrained(copy / "unet")
    assert says in refused(copy)


def test_a_field_that_is_not_known_must_be_as_it_is_by_default(tiny: BaseModel) -> None:
    assert other_conditions(tiny.unet.config) == {}
    assert other_conditions({**tiny.unet.config, "block_out_channels": (8, 16), "sample_size": 99}) == {}
    assert other_conditions({**tiny.unet.config, "depth_channels": 1}) == {"depth_channels": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "its text_encoder is a CLIPTextModelWith"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "it has no tokenizer_2"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "a transformer, not a UNet"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is a AutoencoderTiny, not a AutoencoderKL"),
        ({"unet": [None, None]}, "it has no unet"),
    ],
)
def test_other_kinds_are_refused_by_the_index_alone(copy: Path, change: dict[str, Any], says: str) -> None:
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    for part in ("unet", "vae"):
        (copy / part / WEIGHTS).unlink()  # nothing is read before it is known to be of use
    assert says in refused(copy)


@pytest.mark.parametrize(
    ("source", "scheduler", "config", "says"),
    [
        ("mine", "LCMScheduler", {}, "its scheduler is LCMScheduler"),
        ("mine", "TCDScheduler", {}, "its scheduler is TCDScheduler"),
        ("mine", "EDMEulerScheduler", {}, "its scheduler is EDMEulerScheduler"),
        (
            "mine",
            "EulerDiscreteScheduler",
            {"timestep_spacing": "trailing", "prediction_type": "epsilon"},
            "that of SD-Turbo",
        ),
        ("stabilityai/sd-turbo", "PNDMScheduler", {}, "it is called sd-turbo"),
        ("/models/dreamshaper-LCM/", "PNDMScheduler", {}, "it is called dreamshaper-LCM"),
        ("x/Hyper-SD", "DDIMScheduler", {}, "it is called Hyper-SD"),
    ],
)
def test_distilled_bases_are_warned_about(source: str, scheduler: str, config: dict[str, str], says: str) -> None:
    (warning,) = base_warnings(source, scheduler, config)
    assert says in warning and "--text-guidance 1" in warning


@pytest.mark.parametrize("source", ["tiny", "stable-diffusion-v1-5/stable-diffusion-v1-5", "/turbo/sd15", "film-calm"])
def test_other_bases_are_not(source: str) -> None:
    zero_snr = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    assert base_warnings(source, "EulerDiscreteScheduler", zero_snr) == ()


def test_a_loaded_base_carries_its_warnings(copy: Path, tiny: BaseModel) -> None:
    edit(copy, "scheduler", _class_name="LCMScheduler")
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "LCMScheduler"]}))
    assert "LCMScheduler" in load_base(str(copy)).warnings[0]
    assert tiny.warnings == ()


def as_halves(folder: Path, variant: str = "fp16") -> None:
    """The folder's weights in half precision, under the variant's names only."""
    for file in folder.rglob("*.safetensors"):
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_name(f"{file.stem}.{variant}.safetensors"), {"format": "pt"})
        file.unlink()


def test_a_folder_of_fp16_weights_alone_is_found(copy: Path, tiny: BaseModel) -> None:
    as_halves(copy)
    found = load_base(str(copy))
    assert found.variant == "fp16" and found.unet.dtype == torch.float32
    assert torch.allclose(next(found.unet.parameters()), next(tiny.unet.parameters()), atol=1e-3)
    assert load_base(str(copy), variant="fp16").fingerprint == found.fingerprint


def test_plain_weights_come_first_and_a_variant_by_its_name(copy: Path, tiny: BaseModel, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "halves"))
    as_halves(other, "ema")
    shutil.copytree(other, copy, dirs_exist_ok=True)
    assert load_base(str(copy)).variant is None
    assert load_base(str(copy), variant="ema").variant == "ema"
    with pytest.raises(NotFoundError, match="cannot load the base model"):
        load_base(str(copy), variant="bf16")


@pytest.fixture
def single(copy: Path) -> Path:
    """One file with all weights, under Stable Diffusion's own names."""
    write_single_file(copy, copy / "model.safetensors")
    return copy / "model.safetensors"


def test_a_single_file_with_a_local_config(single: Path, tiny: BaseModel, tmp_path: Path) -> None:
    config = Path(shutil.copytree(TINY_BASE, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors")))
    loaded = load_base(str(single), config=str(config))
    assert loaded.fingerprint == tiny.fingerprint
    assert load_base(str(single), config=str(config), hollow=("unet",)).unet.device.type == "meta"
    assert load_tokenizer(str(config)) is not None


def test_a_single_file_alone_names_what_it_needs(single: Path) -> None:
    with pytest.raises((NotFoundError, MismatchError)) as caught:
        load_base(str(single))
    assert "--base-config DIR" in caught.value.hint


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"cos\nsystem\n")
    with pytest.raises(MismatchError, match=r"is not a \.safetensors file") as caught:
        load_base(str(tmp_path / "model.ckpt"))
    assert caught.value.file is not None


def test_what_was_saved_by_diffusers_loads(copy: Path, tiny: BaseModel, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(str(copy), safety_checker=None)
    pipeline.save_pretrained(tmp_path / "again", variant="fp16")
    assert load_base(str(tmp_path / "again")).fingerprint == tiny.fingerprint
