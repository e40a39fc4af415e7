"""A base in the layout of Stable Diffusion XL, tiny and with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dcdm_cli.model.packaged import TINY_BASE

FIRST, SECOND, POOLED, TOKENS = 16, 32, 24, 16
WIDTH = FIRST + SECOND
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16, 16), "layers_per_block": 2, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (1, 2, 2), "use_linear_projection": True,
    "cross_attention_dim": WIDTH, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
}  # fmt: skip
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip


def text_config(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=544, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, hidden_act=activation,
        num_attention_heads=2, max_position_embeddings=TOKENS, bos_token_id=542, eos_token_id=543,
        projection_dim=POOLED,
    )  # fmt: skip


def xl_unet(**changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET | changes)


def xl_pipeline(*, zeros: bool = True, **unet: Any) -> StableDiffusionXLPipeline:
    """zeros: its `force_zeros_for_empty_prompt`. unet: what its UNet has otherwise."""
    torch.manual_seed(0)
    tokenizers = [CLIPTokenizer.from_pretrained(TINY_BASE, subfolder="tokenizer") for _ in range(2)]
    tokenizers[1].pad_token = "!"  # the second one's padding is another, as in Stable Diffusion XL
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(TINY_BASE, subfolder="vae", torch_dtype=torch.float32),
        text_encoder=CLIPTextModel(text_config(FIRST, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(text_config(SECOND, "gelu")),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=xl_unet(**unet),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def save_xl(folder: Path, **changes: Any) -> Path:
    xl_pipeline(**changes).save_pretrained(folder)
    return folder


def edit_index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
