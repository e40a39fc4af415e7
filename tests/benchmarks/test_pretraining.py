"""A base is pretrained in pieces: what was stopped goes on, and what did not change is not trained again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.bases.pretraining import (
    Checkpointing,
    Recipe,
    build_text_encoder,
    build_tokenizer,
    encode_all,
    tokenize_templates,
    train_unet,
    train_vae,
)
from dcdm_cli.errors import InterruptedRunError, MismatchError
from dcdm_cli.run.progress import Job

RECIPE = Recipe(12, vae_steps=6, unet_steps=6, batch=4)
IMAGES = torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def make_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    levels: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=1, mid_block_add_attention=False, **levels)  # pyright: ignore


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def stopping_at(step: int) -> Job:
    """A job that is asked to stop once so many steps are done."""
    done: list[int] = []
    return Job(
        progress=lambda _, count, __: done.append(count), stop_signal=lambda: "SIGTERM" if step in done else None
    )


def test_a_stopped_vae_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, cut = make_vae(), make_vae()
    curve = train_vae(whole, IMAGES, RECIPE)
    with pytest.raises(InterruptedRunError):
        train_vae(cut, IMAGES, RECIPE, Checkpointing(tmp_path, job=stopping_at(3)))
    again = make_vae()
    assert train_vae(again, IMAGES, RECIPE, Checkpointing(tmp_path)) == curve
    assert torch.equal(weights(again), weights(whole)) and not torch.equal(weights(cut), weights(whole))


def test_a_finished_vae_serves_another_unet_but_not_another_vae_recipe(tmp_path: Path) -> None:
    finished = make_vae()
    train_vae(finished, IMAGES, RECIPE, Checkpointing(tmp_path))
    kept = make_vae()
    train_vae(kept, IMAGES, replace(RECIPE, unet_steps=9, unet_lr=1e-4), Checkpointing(tmp_path))
    assert torch.equal(weights(kept), weights(finished))
    with pytest.raises(MismatchError, match="made with other settings"):
        train_vae(make_vae(), IMAGES, replace(RECIPE, vae_lr=1e-4), Checkpointing(tmp_path))


def test_a_stopped_unet_goes_on_where_it_was(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path / "tokenizer", ["a", "cat", "dog"], 8)
    prompts = tokenize_templates(tokenizer, ("a {}", "{}"), ("cat", "dog"))
    assert prompts.shape == (3, 2, 8)
    latents, labels = encode_all(make_vae().eval(), IMAGES), torch.arange(12) % 2

    def train(place: Checkpointing | None = None) -> tuple[torch.Tensor, Any]:
        torch.manual_seed(0)
        levels: Any = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
        unet = UNet2DConditionModel(
            8, block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2, **levels
        )
        ema, curve = train_unet(unet, build_text_encoder(tokenizer, 16), prompts, latents, labels, RECIPE, place)
        return weights(ema), curve

    whole = train()
    with pytest.raises(InterruptedRunError):
        train(Checkpointing(tmp_path, job=stopping_at(4)))
    again = train(Checkpointing(tmp_path))
    assert torch.equal(again[0], whole[0]) and again[1] == whole[1]
