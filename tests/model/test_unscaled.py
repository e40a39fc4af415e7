"""The rewrite that drops divisions by 1 changes no bit of what comes out."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch.utils._python_dispatch import TorchDispatchMode

from dcdm_cli.model.base import load_base
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.model.unscaled import UnscaledAttention, UnscaledResnet, drop_unit_scales, join_projections

from .conftest import Predict


class Divisions(TorchDispatchMode):
    """Counts divisions of whole activations by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.div and isinstance(args[0], torch.Tensor) and args[0].ndim > 2:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_unet_predicts_the_same_to_the_bit(unet: UNet2DConditionModel, predict: Predict) -> None:
    with Divisions() as before:
        expected = predict(unet)
    changed = drop_unit_scales(unet)
    with Divisions() as after:
        found = predict(unet)
    assert torch.equal(found, expected)
    assert (before.count, after.count) == (changed, 0) and changed > 10


def test_so_does_the_decoder() -> None:
    vae = load_base(TINY_NAME).vae  # the shared one has been changed by whoever decoded with it
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = vae.decode(latents).sample
        assert drop_unit_scales(vae) > 5
        assert torch.equal(vae.decode(latents).sample, expected)


class Products(TorchDispatchMode):
    """Counts matrix products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def test_joined_projections_predict_the_same_with_fewer_products(unet: UNet2DConditionModel, predict: Predict) -> None:
    drop_unit_scales(unet)
    with Products() as before:
        expected = predict(unet)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    joined = join_projections(unet)
    with Products() as after:
        found = predict(unet)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert joined > 5 and joined % 2 == 0  # of each block one attends to itself, one to the text
    assert before.count - after.count == joined // 2 * 2 + joined // 2 * 1
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters  # and hold no weight twice
    assert join_projections(unet) == 0


def test_stable_diffusions_unet_had_54() -> None:
    with torch.device("meta"):
        assert drop_unit_scales(UNet2DConditionModel(cross_attention_dim=768)) == 54


@pytest.mark.parametrize(
    "change", [{"output_scale_factor": 2.0}, {"skip_time_act": True}, {"upsample": torch.nn.Identity()}]
)
def test_blocks_of_another_kind_stay(unet: UNet2DConditionModel, change: dict[str, object]) -> None:
    block = unet.mid_block.resnets[0]
    for name, value in change.items():
        setattr(block, name, value)
    drop_unit_scales(unet)
    assert not isinstance(block, UnscaledResnet)


def test_attention_with_a_mask_or_a_norm_is_left_to_diffusers() -> None:
    torch.manual_seed(0)
    tokens, mask = torch.randn(2, 5, 8), torch.zeros(2, 1, 5)
    mask[:, :, 3:] = -10_000.0
    plain, normed = Attention(8, heads=2, dim_head=4), Attention(8, heads=2, dim_head=4, norm_num_groups=2)
    expected = plain(tokens, attention_mask=mask)
    assert drop_unit_scales(torch.nn.ModuleList([plain, normed])) == 1
    assert isinstance(plain.processor, UnscaledAttention)
    assert torch.equal(plain(tokens, attention_mask=mask), expected)
