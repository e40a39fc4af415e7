from __future__ import annotations

import pytest
import torch

from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.conditioning import NULL_DIFFICULTY, DifficultyEncoder, EncoderConfig, Mode, join_tokens
from dcdm_cli.model.denoiser import ConditionedUNet

LATENTS, TEXT = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 64)
TIMESTEP, LABEL, DIFFICULTY = torch.tensor([5, 900]), torch.tensor([1, 2]), torch.tensor([0.2, 0.7])


def test_without_an_encoder_it_is_the_plain_unet(tiny: BaseModel) -> None:
    network = ConditionedUNet(tiny.unet, None)
    with torch.no_grad():
        made = network(LATENTS, TIMESTEP, TEXT, LABEL, DIFFICULTY)
        assert torch.equal(made, tiny.unet(LATENTS, TIMESTEP, TEXT).sample)
        assert torch.equal(made, network(LATENTS, TIMESTEP, TEXT, LABEL - 1, 1 - DIFFICULTY))


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_the_fusion_equals_joining_the_tokens_by_hand(tiny: BaseModel, mode: Mode) -> None:
    encoder = DifficultyEncoder(EncoderConfig(classes=3, dim=64, tokens=2, mode=mode))
    with torch.no_grad():
        text = join_tokens(TEXT, encoder(LABEL, DIFFICULTY), mode)
        made = ConditionedUNet(tiny.unet, encoder)(LATENTS, TIMESTEP, TEXT, LABEL, DIFFICULTY)
        assert torch.equal(made, tiny.unet(LATENTS, TIMESTEP, text).sample)
        unconditioned = ConditionedUNet(tiny.unet, encoder)(
            LATENTS, TIMESTEP, TEXT, LABEL, torch.full((2,), NULL_DIFFICULTY)
        )
    assert (made - unconditioned).abs().max() > 1e-3


def test_the_gradient_reaches_the_encoder_through_the_frozen_unet(tiny: BaseModel) -> None:
    encoder = DifficultyEncoder(EncoderConfig(classes=3, dim=64))
    ConditionedUNet(tiny.unet, encoder)(LATENTS, TIMESTEP, TEXT, LABEL, DIFFICULTY).square().mean().backward()
    first = encoder.mlp[0].weight.grad
    assert first is not None and first.any()
    assert all(p.grad is None for p in tiny.unet.parameters())
