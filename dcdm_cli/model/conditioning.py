"""What the difficulty encoder E(y, s) is told, and how its tokens join the text tokens. The network: encoder.py.

Paper: an MLP trained from scratch takes the class label joined with the score; its output is concatenated with the text
embedding and goes to cross-attention. Not from the paper: one-hot or learned label, Fourier features, depth, width,
the number of tokens, the learned null token, and mode `replace`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

ENCODER_FILE = "difficulty_encoder.safetensors"
NULL_DIFFICULTY = -1.0  # any negative difficulty means "no difficulty given": the learned null token
Mode = Literal["append", "replace"]
LabelEmbedding = Literal["onehot", "learned"]
Width = Annotated[int, Field(ge=1, le=2**16)]


@dataclass(frozen=True)
class EncoderConfig:
    """Everything needed to build the encoder; stored as JSON beside its weights. ValueError for unknown words."""

    classes: Annotated[int, Field(ge=1, le=2**20)]
    dim: Width  # cross-attention width of the UNet
    tokens: Annotated[int, Field(ge=1, le=2**10)] = 1
    hidden: Width = 256
    label_embedding: LabelEmbedding = "onehot"
    frequencies: Annotated[int, Field(ge=0, le=2**6)] = 2
    mode: Mode = "append"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode) or self.label_embedding not in get_args(LabelEmbedding):
            raise ValueError(f"unknown mode {self.mode!r} or label embedding {self.label_embedding!r}")


def fourier_features(difficulty: Tensor, frequencies: int) -> Tensor:
    """s itself, then sin and cos of pi * 2^k * s: [B] -> [B, 1 + 2 * frequencies]."""
    octaves = 2.0 ** torch.arange(frequencies, device=difficulty.device, dtype=difficulty.dtype)
    angles = math.pi * difficulty[:, None] * octaves
    return torch.cat([difficulty[:, None], angles.sin(), angles.cos()], dim=1)


def join_tokens(text: Tensor, tokens: Tensor, mode: Mode) -> Tensor:
    """text [B, T, D] with tokens [B, n, D]: `append` -> [B, T + n, D]; `replace` overwrites the last n, [B, T, D].

    `replace` keeps the length for engines that are fixed at 77 tokens; the last ones are padding in short prompts.
    """
    kept = text if mode == "append" else text[:, : -tokens.shape[1]]
    # the encoder stays in float32 where text and UNet are in half precision
    return torch.cat([kept, tokens.to(text.dtype)], dim=1)
