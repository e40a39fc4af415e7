"""diffusers' residual and attention blocks without the division that ends them where it is by 1.

Stable Diffusion's UNet has 54 of them. Each reads and writes a whole activation, which compilers see and PyTorch as it
stands does not. Exact: x / 1 is x. `join_projections` then lets each attention project in one product what it projects
from the same tokens. For inference, changed in place; never on a network that is trained or saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def drop_unit_scales(network: nn.Module) -> int:
    """Changes the blocks of a UNet or VAE that divide by 1. Returns how many."""
    changed = 0
    for module in network.modules():
        # not isinstance: a subclass may compute something else
        if type(module) is ResnetBlock2D and _is_plain_resnet(module):
            # in place, so that weights keep their names and whoever holds the block holds this one
            module.__class__ = UnscaledResnet
        elif isinstance(module, Attention) and _is_plain_attention(module):
            module.set_processor(UnscaledAttention())  # pyright: ignore[reportArgumentType]
        else:
            continue
        changed += 1
    return changed


def join_projections(network: nn.Module) -> int:
    """Query, key and value of a self-attention in one matrix product, key and value of a cross-attention in another.

    Exact, as every value keeps its own row of weights. For blocks that `drop_unit_scales` has changed, whose separate
    projections are given up. Returns how many.
    """
    changed = 0
    for module in network.modules():
        if isinstance(module, Attention) and type(module.processor) is UnscaledAttention:
            names = ("to_k", "to_v") if module.is_cross_attention else ("to_q", "to_k", "to_v")
            with torch.no_grad():
                module.fuse_projections()
            for name in names:
                # fuse_projections copies the weights: kept, they would be there twice
                delattr(module, name)
            module.set_processor(JoinedAttention())  # pyright: ignore[reportArgumentType]
            changed += 1
    return changed


class UnscaledResnet(ResnetBlock2D):
    """[B, C, h, w], [B, T] or None -> [B, C', h, w]."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        # diffusers has dropout between the two, which does nothing in inference
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        return (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)) + hidden


class UnscaledAttention(AttnProcessor2_0):
    """For tokens [B, N, D] without a mask, which is all that the UNet of a fused network has."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None or hidden_states.ndim != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        query, key, value = self.project(attn, hidden_states, encoder_hidden_states)
        mixed = F.scaled_dot_product_attention(query, key, value)
        # to_out[1] is dropout
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))  # pyright: ignore[reportOptionalSubscript]

    def project(self, attn: Attention, tokens: Tensor, context: Tensor | None) -> Sequence[Tensor]:
        """Query, key and value, each [B, heads, N, D / heads]. context None = the tokens attend to each other."""
        other = tokens if context is None else context
        return [
            projection(given).unflatten(2, (attn.heads, -1)).transpose(1, 2)  # pyright: ignore[reportOptionalCall]
            for projection, given in ((attn.to_q, tokens), (attn.to_k, other), (attn.to_v, other))
        ]


class JoinedAttention(UnscaledAttention):
    """As `UnscaledAttention`, for an attention of `join_projections`."""

    def project(self, attn: Attention, tokens: Tensor, context: Tensor | None) -> Sequence[Tensor]:
        if not attn.is_cross_attention:
            return _apart(attn, attn.to_qkv(tokens), 3)
        query = _apart(attn, attn.to_q(tokens), 1)
        return [*query, *_apart(attn, attn.to_kv(tokens if context is None else context), 2)]


def _apart(attn: Attention, projected: Tensor, parts: int) -> Sequence[Tensor]:
    """[B, N, parts * D] -> its parts as views, each [B, heads, N, D / heads]."""
    return projected.unflatten(2, (parts, attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def _is_plain_resnet(block: ResnetBlock2D) -> bool:
    moves = block.upsample is not None or block.downsample is not None
    odd = block.skip_time_act or (block.time_emb_proj is not None and block.time_embedding_norm != "default")
    return block.output_scale_factor == 1 and not moves and not odd


def _is_plain_attention(attention: Attention) -> bool:
    parts = (attention.spatial_norm, attention.group_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    plain = not any(part is not None and part is not False for part in parts) and not attention.residual_connection
    return plain and attention.rescale_output_factor == 1 and type(attention.processor) is AttnProcessor2_0
