"""A base in the layout of Stable Diffusion 2.1, tiny and with random weights: it predicts velocity, its attention has
linear projections and a number of heads per block, its text encoder is of another make."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dcdm_cli.model.packaged import TINY_BASE

WIDTH = 32
UNET = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "cross_attention_dim": WIDTH, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True,
}  # fmt: skip
TEXT = {
    "vocab_size": 607, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "hidden_act": "gelu",
    "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 605, "eos_token_id": 606,
    "projection_dim": WIDTH,
}  # fmt: skip


def save_sd21(folder: Path) -> Path:
    """The embedded base's tokenizer and autoencoder; the rest as Stable Diffusion 2.1 has it, only small."""
    made = Path(shutil.copytree(TINY_BASE, folder))
    torch.manual_seed(0)
    for part, network in (
        ("unet", UNet2DConditionModel(**UNET)),
        ("text_encoder", CLIPTextModel(CLIPTextConfig(**TEXT))),
    ):
        shutil.rmtree(made / part)
        network.save_pretrained(made / part)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    ).save_pretrained(made / "scheduler")  # fmt: skip
    return made
