"""Loading the base model: any diffusers pipeline folder or hub id in the Stable Diffusion layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import hash_json

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BaseModel:
    """The frozen parts. `vae` stays in float32: half precision overflows in SD's decoder."""

    source: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]

    @property
    def latent_size(self) -> int:
        """Pixels per latent cell, 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def fingerprint(self) -> str:
        """Hash over the configurations and a sample of every UNet tensor: cheap, and different for other weights."""
        probe = {name: p.detach().flatten()[:4].float().tolist() for name, p in self.unet.named_parameters()}
        return hash_json([dict(self.unet.config), dict(self.vae.config), self.scheduler_config, probe])


def load_base(source: str, *, revision: str | None = None, dtype: str = "fp32", device: str = "cpu") -> BaseModel:
    """source: folder or hub id. Raises NotFoundError when it cannot be had, MismatchError for another layout."""
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            source,
            revision=revision,
            dtype=DTYPES[dtype],
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"cannot load the base model {source!r}: {reason}",
            "give a diffusers pipeline folder or a hub id with --base; without a network download it first",
            file=source if Path(source).exists() else None,
        ) from error
    except TypeError as error:
        raise MismatchError(
            f"{source!r} is not in the Stable Diffusion layout: {error}",
            "the folder needs unet, vae, text_encoder, tokenizer, scheduler",
        ) from error
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval().to(device)
    if dtype != "fp32":
        pipeline.vae.to(torch.float32)
    return BaseModel(
        str(source),
        pipeline.unet,
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        dict(pipeline.scheduler.config),
    )


def load_tokenizer(source: str, revision: str | None = None) -> CLIPTokenizer | None:
    """The base model's tokenizer alone, or None when it cannot be had here."""
    try:
        return CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", revision=revision or "main")
    except (OSError, ValueError):
        return None


@torch.no_grad()
def encode_text(base: BaseModel, captions: list[str]) -> torch.Tensor:
    """Captions -> float [N, T, D] on the encoder's device; longer ones are cut at T = the tokenizer's limit."""
    tokens = base.tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=base.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return base.text_encoder(tokens.to(base.text_encoder.device))[0]
