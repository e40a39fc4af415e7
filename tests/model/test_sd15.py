"""Stable Diffusion 1.5 at its real size, with random weights: shapes and memory hold for one optimiser step."""

from __future__ import annotations

import copy
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dcdm_cli.model.adapter import ENCODER_FILE, AdapterInfo, save_adapter
from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.encoder import load_encoder
from dcdm_cli.model.latents import decode_latents, encode_latents, to_pixels, torch_decoder
from dcdm_cli.model.lora import LORA_FILE
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.training.dataset import TrainingSet
from dcdm_cli.training.loop import finetune

UNET = {"cross_attention_dim": 768, "sample_size": 64, "attention_head_dim": 8}  # the rest of SD 1.5 is the default
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "vocab_size": 49408, "hidden_act": "quick_gelu",
}  # fmt: skip
MIB = 2**20


def quick_weights(network: nn.Module) -> nn.Module:
    """Small random weights, filled far faster than the library's own initialisation does."""
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.fill_(1.0) if "norm" in name and name.endswith("weight") else tensor.normal_(0, 0.02)
    return network


@pytest.fixture(scope="module")
def sd15(tiny: BaseModel) -> BaseModel:
    with torch.device("meta"):
        parts = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(**TEXT))
    unet, vae, text_encoder = (quick_weights(part).requires_grad_(False).eval() for part in parts)
    text_encoder.embeddings.position_ids = torch.arange(77)[None]
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.model_max_length = 77
    schedule = {**tiny.scheduler_config, "prediction_type": "epsilon"}
    return BaseModel("sd15", unet, vae, text_encoder, tokenizer, schedule, "random")  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_is_stable_diffusion_15(sd15: BaseModel) -> None:
    sizes = [sum(p.numel() for p in part.parameters()) for part in (sd15.unet, sd15.vae, sd15.text_encoder)]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    assert sd15.latent_size == 8


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "side"), [("append", 64), ("replace", 32)])
def test_one_optimiser_step_with_the_presets_settings(sd15: BaseModel, tmp_path: Path, mode: str, side: int) -> None:
    """512 pixels (256 the other way of conditioning), batch 1, fp32 on the CPU; everything else as `--preset sd15` has
    it. side: of latents."""
    preset = resolve(flags={"preset": "sd15"}).config.finetune.model_dump()
    settings = FinetuneConfig.model_validate(
        {**preset, "precision": "fp32", "batch_size": 1, "steps": 1, "warmup_steps": 0, "mode": mode, "ema_decay": 0.0}
    )
    rng = np.random.default_rng(0)
    data = TrainingSet(
        latents=rng.standard_normal((2, 4, side, side)).astype(np.float32),
        text=rng.standard_normal((3, 77, 768)).astype(np.float32),
        caption=torch.tensor([0, 1]),
        label=torch.tensor([3, 999]),
        difficulty=torch.tensor([0.1, 0.9]),
        epoch=torch.tensor([0, 1]),
    )
    trained = finetune(sd15, data, 1000, settings, tmp_path / "checkpoints", Job())
    assert trained.skipped == 0 and np.isfinite(trained.losses[0][1])
    trainable = {name: p for name, p in trained.network.named_parameters() if p.requires_grad}
    assert sum(p.numel() for name, p in trainable.items() if "lora_" in name) == 3_188_736
    moved = [name for name, p in trainable.items() if "lora_B" in name and p.any()]
    assert len(moved) == 128  # four projections in each of two attentions in 16 blocks: all have learnt something
    encoder = trained.network.encoder
    assert encoder is not None and encoder.config.dim == 768
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    assert peak < 12_000, f"{peak:.0f} MiB"
    info = AdapterInfo("sd15", "random", None, tuple(map(str, range(1000))), 512, encoder.config, {})
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", trained.network.unet, encoder, info)
    assert (tmp_path / "adapter" / LORA_FILE).stat().st_size < 16 * MIB
    assert (tmp_path / "adapter" / ENCODER_FILE).is_file() and load_encoder(tmp_path / "adapter", info) is not None
    trained.network.unet.delete_adapters("dcdm")


@pytest.mark.slow
def test_its_autoencoder_and_text_encoder_have_the_shapes_we_rely_on(sd15: BaseModel) -> None:
    from PIL import Image

    from dcdm_cli.model.base import encode_text

    latents = encode_latents(sd15.vae, to_pixels([Image.new("RGB", (64, 80), "red")], 64))
    assert latents.shape == (1, 4, 8, 8)
    assert decode_latents(torch_decoder(sd15.vae), latents, 1).shape == (1, 64, 64, 3)
    assert encode_text(sd15, ["a photo of a cat", ""]).shape == (2, 77, 768)
