"""The difficulty encoder E(y, s) and how its tokens join the text tokens.

Paper: an MLP trained from scratch takes the class label joined with the score; its output is concatenated with the text
embedding and goes to cross-attention. Not from the paper: one-hot or learned label, Fourier features, depth, width,
the number of tokens, the learned null token, and mode `replace`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

NULL_DIFFICULTY = -1.0  # any negative difficulty means "no difficulty given": the learned null token
Mode = Literal["append", "replace"]
LabelEmbedding = Literal["onehot", "learned"]
Size = Annotated[int, Field(ge=1, le=2**16)]


@dataclass(frozen=True)
class EncoderConfig:
    """Everything needed to build the encoder; stored as JSON beside its weights. ValueError for unknown words."""

    classes: Annotated[int, Field(ge=1, le=2**20)]
    dim: Size  # cross-attention width of the UNet
    tokens: Annotated[int, Field(ge=1, le=2**10)] = 1
    hidden: Size = 256
    label_embedding: LabelEmbedding = "onehot"
    frequencies: Annotated[int, Field(ge=0, le=2**6)] = 2
    mode: Mode = "append"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode) or self.label_embedding not in get_args(LabelEmbedding):
            raise ValueError(f"unknown mode {self.mode!r} or label embedding {self.label_embedding!r}")


class DifficultyEncoder(nn.Module):
    """(label int64 [B], difficulty float32 [B]) -> tokens float32 [B, tokens, dim].

    difficulty lies in [0, 1], 0 easy, 1 hard; a negative value yields the null token, whatever the label.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.classes if config.label_embedding == "onehot" else config.hidden
        self.embedding = nn.Embedding(config.classes, width) if config.label_embedding == "learned" else None
        self.mlp = nn.Sequential(
            nn.Linear(width + 1 + 2 * config.frequencies, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.tokens * config.dim),
            nn.Unflatten(1, (config.tokens, config.dim)),
            nn.LayerNorm(config.dim),  # as large as the text tokens, or attention overlooks them
        )
        self.null = nn.Parameter(torch.randn(config.tokens, config.dim))

    def forward(self, label: Tensor, difficulty: Tensor) -> Tensor:
        known = label.clamp_min(0)
        one_hot = F.one_hot(known, self.config.classes).to(difficulty.dtype)
        joined = one_hot if self.embedding is None else self.embedding(known)
        features = torch.cat([joined, fourier_features(difficulty, self.config.frequencies)], dim=1)
        return torch.where((difficulty < 0)[:, None, None], self.null, self.mlp(features))


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
    return torch.cat([kept, tokens.to(text.dtype)], dim=1)
