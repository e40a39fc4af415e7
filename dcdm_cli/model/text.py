"""The text condition: one tensor float [B, T, D], whatever the text encoders of a base give.

Stable Diffusion XL tells its UNet three things of a prompt: the penultimate hidden states of two text encoders side by
side, a pooled embedding, and sizes. The first two travel as one tensor whose last row is the pooled embedding, filled
up with zeros; the sizes are constants of the fused network. So whoever carries text (plans, engines, exported graphs)
need not know of either. Packed here by `TwoTextEncoders`, taken apart by `PooledText`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline
POOLED = "text_time"  # a UNet's addition_embed_type: it takes a pooled text embedding and six numbers of sizes
SIZES = 6  # height and width of the original, top and left of the crop, height and width of what is wanted


class TwoTextEncoders(nn.Module):
    """token_ids int64 [B, 2T], those of both tokenizers side by side -> (text [B, T + 1, D], the pooled row last,).

    empty: the ids int64 [2T] of the empty prompt, where that stands for zeros; None = it is encoded like any other.
    """

    empty: Tensor | None

    def __init__(self, first: CLIPTextModel, second: CLIPTextModelWithProjection, empty: Tensor | None) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("empty", empty, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def forward(self, token_ids: Tensor) -> tuple[Tensor]:
        # halves, as both tokenizers have one length: `check_pooled` refuses others
        ids = token_ids.chunk(2, dim=1)
        found = [encoder(one, output_hidden_states=True) for encoder, one in zip(self._encoders(), ids, strict=True)]
        text = torch.cat([one.hidden_states[-2] for one in found], dim=2)
        pooled: Tensor = found[1].text_embeds
        # as wide as a token, to travel with the text; `PooledText` takes the zeros off again
        row = F.pad(pooled, (0, text.shape[2] - pooled.shape[1]))[:, None]
        text = torch.cat([text, row], dim=1)
        if self.empty is not None:
            # the pooled row too, as diffusers' pipeline does where no negative prompt is given
            text = text.masked_fill((token_ids == self.empty).all(dim=1)[:, None, None], 0.0)
        return (text,)

    def _encoders(self) -> tuple[Any, Any]:
        return self.first, self.second


class PooledText(nn.Module):
    """text [B, T + 1, D] -> (text [B, T, D], what the UNet is told beside it).

    width: of the pooled embedding. size: pixels per side of the images. As diffusers' pipeline has it by default,
    original and wanted size are that of the image, and nothing is cropped.
    """

    time_ids: Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.width = width
        sizes = torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32)
        self.register_buffer("time_ids", sizes, persistent=False)

    def forward(self, text: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sizes = self.time_ids.expand(text.shape[0], -1)
        return text[:, :-1], {"text_embeds": text[:, -1, : self.width], "time_ids": sizes}


def pooled_width(unet: Any) -> int | None:
    """unet: a UNet's config. How many values of a pooled text embedding it takes; None = it takes no such thing."""
    if unet["addition_embed_type"] != POOLED:
        return None
    return unet["projection_class_embeddings_input_dim"] - SIZES * unet["addition_time_embed_dim"]


def tokenizers_of(pipeline: Pipeline) -> tuple[CLIPTokenizer, CLIPTokenizer | None]:
    return pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)


def text_encoder_of(pipeline: Pipeline) -> CLIPTextModel | TwoTextEncoders:
    if not isinstance(pipeline, StableDiffusionXLPipeline):
        return pipeline.text_encoder
    zeros: bool = pipeline.config["force_zeros_for_empty_prompt"]
    empty = token_ids([pipeline.tokenizer, pipeline.tokenizer_2], [""])[0] if zeros else None
    return TwoTextEncoders(pipeline.text_encoder, pipeline.text_encoder_2, empty)


def token_ids(tokenizers: Sequence[CLIPTokenizer | None], captions: Sequence[str]) -> Tensor:
    """Captions -> int64 [N, T] of each tokenizer, side by side, padded or cut to its limit."""
    asked: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    made: list[Any] = [
        tokenizer(list(captions), max_length=tokenizer.model_max_length, **asked).input_ids
        for tokenizer in tokenizers
        if tokenizer is not None
    ]
    return torch.cat(made, dim=1)
