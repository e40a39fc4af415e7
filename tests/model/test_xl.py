"""Stable Diffusion XL's kind of base: its text condition, what of its UNet is shared, and which ones are refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dcdm_cli import DifficultyEncoder
from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import BaseModel, encode_text, load_base, tokenize
from dcdm_cli.model.conditioning import EncoderConfig, Mode, join_tokens
from dcdm_cli.model.denoiser import ConditionedUNet, share_prefix
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.kohya import KOHYA_FILE, save_kohya, stability_name
from dcdm_cli.model.layout import POOLED_FIELDS, other_conditions
from dcdm_cli.model.lora import add_lora
from dcdm_cli.model.text import pooled_width

from ..xl import POOLED, TOKENS, WIDTH, edit_index, save_xl, xl_unet
from .conftest import ALL_KINDS, with_lora
from .ldm_names import write_single_file
from .test_base import edit
from .test_encoder import run_snippet

PROMPTS = ["a photo of a test tube", "two"]
NAMES = ("zero", "test tube", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_base(str(folder))


@pytest.fixture
def pipe(folder: Path) -> StableDiffusionXLPipeline:
    made = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("zeros", [True, False])
@torch.no_grad()
def test_the_text_condition_is_that_of_diffusers_pipeline(tmp_path: Path, zeros: bool) -> None:
    base = load_base(str(save_xl(tmp_path, zeros=zeros)))
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    found = encode_text(base, [*PROMPTS, ""])
    text, empty, pooled, pooled_empty = pipe.encode_prompt(PROMPTS, None, "cpu", 1, True, None)
    assert found.shape == (3, TOKENS + 1, WIDTH) and base.text_shape == (TOKENS + 1, WIDTH)
    assert torch.allclose(found[:2, :-1], text, atol=1e-6) and torch.allclose(found[:2, -1, :POOLED], pooled, atol=1e-6)
    assert torch.allclose(found[2, :-1], empty[0], atol=1e-6) and not found[:, -1, POOLED:].any()
    assert torch.allclose(found[2, -1, :POOLED], pooled_empty[0], atol=1e-6)
    assert bool(found[2].any()) != zeros and not torch.allclose(pooled[0], pooled[1])
    first, second = tokenize(base, ["two"]).chunk(2, dim=1)
    assert first[0, -1] != second[0, -1], "each is padded as its own tokenizer does"


def test_the_empty_prompts_meaning_is_part_of_the_base(base: BaseModel, tmp_path: Path) -> None:
    other = load_base(str(save_xl(tmp_path, zeros=False)))
    assert other.fingerprint != base.fingerprint
    edit_index(tmp_path, force_zeros_for_empty_prompt=True)
    assert load_base(str(tmp_path)).fingerprint == base.fingerprint


def test_half_precision_and_parts_without_weights(folder: Path, base: BaseModel) -> None:
    half = load_base(str(folder), dtype="bf16")
    assert half.text_encoder.dtype == half.unet.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    assert half.fingerprint == base.fingerprint and encode_text(half, [""]).dtype == torch.bfloat16
    hollow = load_base(str(folder), hollow=("unet", "vae"))
    assert hollow.unet.device.type == "meta" and hollow.text_shape == base.text_shape
    assert base.overflows and not any(p.requires_grad for p in base.text_encoder.parameters())


def test_a_mended_autoencoder_does_not_overflow(tmp_path: Path) -> None:
    edit(save_xl(tmp_path), "vae", force_upcast=False)
    assert not load_base(str(tmp_path)).overflows


@pytest.mark.parametrize("refiner", [False, True])
def test_a_single_file(folder: Path, base: BaseModel, tmp_path: Path, refiner: bool) -> None:
    config = Path(shutil.copytree(folder, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors")))
    write_single_file(folder, tmp_path / "xl.safetensors")
    if refiner:
        edit_index(config, requires_aesthetics_score=True)
        with pytest.raises(MismatchError, match="is a refiner"):
            load_base(str(tmp_path / "xl.safetensors"), config=str(config))
        return
    loaded = load_base(str(tmp_path / "xl.safetensors"), config=str(config))
    assert loaded.fingerprint == base.fingerprint and loaded.text_shape == base.text_shape
    assert torch.allclose(encode_text(loaded, PROMPTS), encode_text(base, PROMPTS), atol=1e-6)
    with pytest.raises((NotFoundError, MismatchError)) as caught:  # its weights' names tell what it is, offline too
        load_base(str(tmp_path / "xl.safetensors"))
    assert "--base-config DIR" in caught.value.hint


def rows(images: int, calls: int) -> tuple[Tensor, ...]:
    """Latents, timestep, text, label and difficulty of a guided step: the first two repeat, the text does not."""
    generator = torch.Generator().manual_seed(images)
    latents = torch.randn(images, 4, 8, 8, generator=generator).repeat(calls, 1, 1, 1)
    timestep = torch.randint(0, 1000, (images,), generator=generator).repeat(calls)
    text = torch.randn(images * calls, TOKENS + 1, WIDTH, generator=generator)
    return latents, timestep, text, torch.arange(images * calls) % 3, torch.linspace(0, 1, images * calls)


@pytest.mark.parametrize("mode", ["append", "replace"])
@torch.no_grad()
def test_the_network_is_told_pooled_text_and_sizes(base: BaseModel, mode: Mode) -> None:
    encoder = DifficultyEncoder(EncoderConfig(classes=3, dim=WIDTH, tokens=2, mode=mode))
    latents, timestep, text, label, difficulty = rows(2, 1)
    made = ConditionedUNet(base.unet, encoder, 32)(latents, timestep, text, label, difficulty)
    beside = {"text_embeds": text[:, -1, :POOLED], "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    joined = join_tokens(text[:, :-1], encoder(label, difficulty), mode)
    assert joined.shape[1] == TOKENS + (2 if mode == "append" else 0)
    wanted = base.unet(latents, timestep, joined, added_cond_kwargs=beside).sample
    assert torch.equal(made, wanted)
    other = ConditionedUNet(base.unet, encoder, 64)(latents, timestep, text, label, difficulty)
    assert not torch.allclose(other, made, atol=1e-4)
    with pytest.raises(AssertionError, match="must be told a size"):
        ConditionedUNet(base.unet, encoder)


@pytest.mark.parametrize("calls", [2, 3])
@torch.no_grad()
def test_what_is_shared_has_not_been_told_of_the_text(base: BaseModel, calls: int) -> None:
    network, guided = ConditionedUNet(base.unet, None, 32), rows(2, calls)
    plain = network(*guided)
    share_prefix(base.unet, calls)
    assert torch.allclose(network(*guided), plain, atol=2e-6)


def refused(folder: Path) -> MismatchError:
    with pytest.raises(MismatchError) as caught:
        load_base(str(folder))
    return caught.value


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"requires_aesthetics_score": True}, "requires_aesthetics_score = true"),
        ({"text_encoder": [None, None]}, "it has no text_encoder"),
        ({"tokenizer_2": [None, None]}, "it has no tokenizer_2"),
        ({"text_encoder_2": ["transformers", "T5EncoderModel"]}, "its text_encoder_2 is a T5EncoderModel, not a CLIP"),
    ],
)
def test_other_pipelines_are_refused_by_the_index_alone(tmp_path: Path, index: dict[str, Any], says: str) -> None:
    edit_index(save_xl(tmp_path), **index)
    for file in tmp_path.glob("*/*.safetensors"):
        file.unlink()  # nothing is read before it is known to be of use
    error = refused(tmp_path)
    assert says in error.message
    assert ("--base stabilityai/stable-diffusion-xl-base-1.0" in error.hint) == ("aesthetics" in says)


REFINER = {"projection_class_embeddings_input_dim": 5 * 8 + POOLED}  # one number, an aesthetic score, for two sizes
PLAIN = dict.fromkeys(("addition_embed_type", "addition_time_embed_dim", *REFINER))


@pytest.mark.parametrize(
    ("unet", "says"),
    [
        (
            REFINER,
            f"projection_class_embeddings_input_dim = {5 * 8 + POOLED}, not {POOLED} for the pooled text and 6 x",
        ),
        (PLAIN, "it has two text encoders, and its UNet addition_embed_type = None instead of 'text_time'"),
        ({"cross_attention_dim": 32}, f"cross_attention_dim = 32, its two text encoders give {WIDTH} values"),
        ({"in_channels": 9}, "does not map 4 latent channels"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim = 8"),
    ],
)
def test_another_condition_in_the_unet_is_named(tmp_path: Path, unet: dict[str, Any], says: str) -> None:
    error = refused(save_xl(tmp_path, **unet))
    assert says in error.message and "XL" in error.hint


def test_latents_that_are_scaled_by_channel_are_refused(tmp_path: Path) -> None:
    edit(save_xl(tmp_path), "vae", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    assert "latents_mean" in refused(tmp_path).message


@pytest.fixture
def adapter(base: BaseModel, tmp_path: Path) -> Iterator[Path]:
    torch.manual_seed(0)
    encoder = DifficultyEncoder(EncoderConfig(classes=3, dim=WIDTH, tokens=2, hidden=8))
    info = AdapterInfo(base.source, base.fingerprint, None, NAMES, 32, encoder.config, {})
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(folder, with_lora(base.unet, ("to_q", "to_v"), alpha=8, size=0.1), encoder, info)
    yield folder


def test_diffusers_pipeline_is_conditioned_as_our_network_is(adapter: Path, pipe: StableDiffusionXLPipeline) -> None:
    encoder = DifficultyEncoder.from_pretrained(adapter)
    wanted = encoder.condition(pipe, PROMPTS, label=[1, 2], difficulty=[0.6, 0.1])
    ours, label, difficulty = load_fused(adapter), torch.tensor([1, 2]), torch.tensor([0.6, 0.1])
    latents, step = rows(2, 1)[:2]
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
    with torch.no_grad():
        for prefix, text, s in (("", PROMPTS, difficulty), ("negative_", ["", ""], -torch.ones(2))):
            expected = ours.network(latents, step, encode_text(ours.base, text), label, s)
            beside = {"text_embeds": wanted[f"{prefix}pooled_prompt_embeds"], "time_ids": sizes}
            found = pipe.unet(latents, step, wanted[f"{prefix}prompt_embeds"], added_cond_kwargs=beside).sample
            assert torch.allclose(found, expected, atol=1e-5)
    images = pipe(**wanted, guidance_scale=3.0, num_inference_steps=2, height=32, width=32, output_type="np").images
    assert images.shape == (2, 32, 32, 3)


@pytest.mark.slow
def test_the_cards_python_runs_as_it_stands(adapter: Path) -> None:
    done = run_snippet((adapter / "README.md").read_text("utf-8"), adapter)
    assert done.returncode == 0 and (adapter / "image.png").is_file(), done.stderr


def predict(unet: UNet2DConditionModel) -> Tensor:
    with torch.no_grad():
        latents, timestep, text, *_ = rows(2, 1)
        beside = {"text_embeds": text[:, -1, :POOLED], "time_ids": torch.full((2, 6), 32.0)}
        return unet(latents, timestep, text[:, :-1], added_cond_kwargs=beside).sample


def test_the_file_for_comfyui_has_the_names_of_stability_ais_network(tmp_path: Path) -> None:
    unet, fresh = xl_unet(), xl_unet()
    fresh.load_state_dict(unet.state_dict())
    kinds = (*ALL_KINDS, "downsamplers.0.conv", "upsamplers.0.conv")
    before, wanted = predict(fresh), predict(with_lora(unet, kinds, alpha=8, size=0.1))
    save_kohya(unet, tmp_path, title="birds", resolution=32, base="/data/xl")
    names = {key.split(".")[0] for key in load_file(tmp_path / KOHYA_FILE)}
    assert {  # of the real file: layers per block and kinds of blocks are those of Stable Diffusion XL
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_1_attn2_to_out_0",
        "lora_unet_middle_block_0_out_layers_3",
        "lora_unet_middle_block_1_transformer_blocks_1_ff_net_0_proj",
        "lora_unet_output_blocks_2_1_proj_in",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_8_0_skip_connection",
    } <= names
    assert not any(re.search("down_blocks|up_blocks|resnets|mid_block", name) for name in names)
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(
        str(tmp_path), weight_name=KOHYA_FILE, unet_config=fresh.config
    )
    StableDiffusionXLPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=fresh, adapter_name="kohya")
    assert not torch.allclose(before, wanted, atol=1e-2) and torch.allclose(predict(fresh), wanted, atol=1e-5)


def test_every_layer_has_a_name_of_its_own_there() -> None:
    unet = xl_unet()
    layers = [name for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    found = {stability_name(unet, layer) for layer in layers}
    assert len(found) == len(layers) and {"label_emb.0.2", "time_embed.0", "out.2", "input_blocks.0.0"} <= found


def test_it_is_stable_diffusion_xl() -> None:
    """The real UNet's shape, without its weights: what it is told, and where kohya's file has its attention."""
    real = {"sample_size": 128, "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)}
    real |= {"attention_head_dim": (5, 10, 20), "norm_num_groups": 32, "cross_attention_dim": 2048}
    real |= {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}
    with torch.device("meta"):
        unet = xl_unet(**real)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert pooled_width(unet.config) == 1280 and set(other_conditions(unet.config)) == POOLED_FIELDS
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    layers = [stability_name(unet, name) for name, _ in unet.named_modules() if name.endswith(ends)]
    places = {layer.partition(".1.transformer_blocks")[0] for layer in layers}
    attended = {"input": (4, 5, 7, 8), "output": range(6)}
    assert len(set(layers)) == 560
    assert places == {f"{side}_blocks.{n}" for side, found in attended.items() for n in found} | {"middle_block"}


def test_the_file_for_comfyui_says_what_it_is_for(tmp_path: Path) -> None:
    unet = xl_unet(cross_attention_dim=2048)
    add_lora(unet, 2, 2, ("to_q",))
    save_kohya(unet, tmp_path, title="birds", resolution=1024, base="xl")
    with safe_open(tmp_path / KOHYA_FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and metadata["ss_v2"] == "False"
