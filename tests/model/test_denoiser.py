from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.conditioning import NULL_DIFFICULTY, EncoderConfig, Mode, join_tokens
from dcdm_cli.model.denoiser import ConditionedUNet, share_prefix, split_gates
from dcdm_cli.model.encoder import DifficultyEncoder

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


def toy(down: str = "CrossAttnDownBlock2D", **changes: object) -> UNet2DConditionModel:
    """Two levels of 8 and 16 channels; weights drawn, so that every branch counts."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2,
        layers_per_block=1, down_block_types=(down, "CrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **changes,
    ).eval()  # fmt: skip


def guided_rows(images: int, calls: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timestep and text of one guided step: the first two repeat, the text does not."""
    generator = torch.Generator().manual_seed(images)
    latents = torch.randn(images, 4, 8, 8, generator=generator).repeat(calls, 1, 1, 1)
    timestep = torch.randint(0, 1000, (images,), generator=generator).repeat(calls)
    return latents, timestep, torch.randn(images * calls, 7, width, generator=generator)


def flops(unet: torch.nn.Module, rows: tuple[torch.Tensor, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        unet(*rows)
    return counter.get_total_flops()


@pytest.mark.parametrize("calls", [2, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_a_shared_prefix_changes_nothing_but_the_work(tiny: BaseModel, calls: int, images: int) -> None:
    unet, rows = copy.deepcopy(tiny.unet), guided_rows(images, calls, 64)
    plain, before = predict(unet, rows), flops(unet, rows)
    share_prefix(unet, calls)
    assert torch.allclose(predict(unet, rows), plain, atol=2e-6)
    saved = 1 - flops(unet, rows) / before
    assert 0.03 < saved < 0.05
    share_prefix(unet, 1)
    assert torch.equal(predict(unet, rows), plain) and flops(unet, rows) == before


def test_sharing_again_replaces_the_first(tiny: BaseModel) -> None:
    unet, rows = copy.deepcopy(tiny.unet), guided_rows(2, 2, 64)
    plain = predict(unet, rows)
    share_prefix(unet, 3)
    share_prefix(unet, 2)
    assert torch.allclose(predict(unet, rows), plain, atol=2e-6)


@pytest.mark.parametrize("unet", [toy("DownBlock2D"), toy(only_cross_attention=True), toy(use_linear_projection=True)])
def test_a_shared_prefix_is_exact_in_other_layouts(unet: UNet2DConditionModel) -> None:
    rows = guided_rows(2, 3, 16)
    plain = predict(unet, rows)
    share_prefix(unet, 3)
    assert torch.allclose(predict(unet, rows), plain, atol=2e-6)


def test_a_shared_prefix_needs_equal_groups(tiny: BaseModel) -> None:
    """The reason why a sampler may use it for guided steps only."""
    unet, (latents, timestep, text) = copy.deepcopy(tiny.unet), guided_rows(1, 2, 64)
    rows = (torch.cat([latents[:1], -latents[1:]]), timestep, text)
    plain = predict(unet, rows)
    share_prefix(unet, 2)
    assert (predict(unet, rows) - plain).abs().max() > 1e-2


def test_split_gates_change_nothing_and_take_no_memory(tiny: BaseModel) -> None:
    unet, rows = copy.deepcopy(tiny.unet), guided_rows(2, 2, 64)
    plain = predict(unet, rows)
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    split_gates(unet)
    assert not any(isinstance(module, GEGLU) for module in unet.modules())
    assert torch.allclose(predict(unet, rows), plain, atol=2e-6)
    assert {p.untyped_storage().data_ptr() for p in unet.parameters()} == weights


def predict(unet: torch.nn.Module, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        return unet(*rows).sample
