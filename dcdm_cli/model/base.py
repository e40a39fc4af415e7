"""Loading the base model: any diffusers pipeline folder or hub id in the Stable Diffusion layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dcdm_cli import apart
from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import hash_json
from dcdm_cli.model.packaged import resolve_base

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


@dataclass(frozen=True)
class BaseModel:
    """The frozen parts. `vae` stays in float32: half precision overflows in SD's decoder.

    fingerprint: hash of the weights as loaded in float32, the same for every dtype and wherever the folder lies; empty
    when a part was left without its weights.
    """

    source: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    fingerprint: str

    @property
    def latent_size(self) -> int:
        """Pixels per latent cell, 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)


@apart.loading()
def load_base(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    hollow: Sequence[str] = (),
) -> BaseModel:
    """source: `tiny`, a folder or a hub id. hollow: of `unet` and `vae`, those to have their shapes but no weights.

    Raises NotFoundError when it cannot be had, MismatchError for another layout.
    """
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    place = resolve_base(source)
    try:
        layout: Any = StableDiffusionPipeline.load_config(place, revision=revision)
        missing = set(PARTS) - layout.keys()
        if missing:
            raise _other_layout(source, f"it has no {', '.join(sorted(missing))}")
        pipeline = StableDiffusionPipeline.from_pretrained(
            place,
            revision=revision,
            dtype=torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
            **{part: _hollow(part, place, revision) for part in hollow},
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"cannot load the base model {source!r}: {reason}",
            "give a diffusers pipeline folder or a hub id with --base; without a network download it first",
            file=source if Path(source).exists() else None,
        ) from error
    except TypeError as error:
        raise _other_layout(source, str(error)) from error
    _check_layout(pipeline, source)
    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    scheduler_config = dict(pipeline.scheduler.config)
    fingerprint = "" if hollow else _fingerprint(networks, scheduler_config)
    for part in networks:
        _settle(part, device, torch.float32 if part is pipeline.vae else DTYPES[dtype])
    return BaseModel(str(source), *networks, pipeline.tokenizer, scheduler_config, fingerprint)


def load_tokenizer(source: str, revision: str | None = None) -> CLIPTokenizer | None:
    """The base model's tokenizer alone, or None when it is not on this machine; nothing is fetched for it."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            resolve_base(source), subfolder="tokenizer", revision=revision or "main", local_files_only=True
        )
    except (OSError, ValueError):
        return None
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    return tokenizer if words else None  # without its files transformers makes one that knows no word


@torch.no_grad()
def encode_text(base: BaseModel, captions: list[str]) -> torch.Tensor:
    """Captions -> float [N, T, D] on the encoder's device; longer ones are cut at T = the tokenizer's limit."""
    return base.text_encoder(tokenize(base, captions).to(base.text_encoder.device))[0]


def tokenize(base: BaseModel, captions: list[str]) -> torch.Tensor:
    """Captions -> int64 [N, T], padded or cut to the tokenizer's limit."""
    return base.tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=base.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


def _settle(part: torch.nn.Module, device: str, dtype: torch.dtype) -> None:
    """Frozen, in eval mode, where and as it will be used; a hollow part has nothing to move."""
    part.requires_grad_(False).eval()
    if next(part.parameters()).device.type != "meta":
        torch.nn.Module.to(part, device, dtype)  # diffusers' own `to` warns of modules that there are none of


def _hollow(part: str, source: str, revision: str | None) -> torch.nn.Module:
    """The part as its config describes it, without memory for weights."""
    kind: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    with torch.device("meta"):
        return kind.from_config(kind.load_config(source, subfolder=part, revision=revision))


def _check_layout(pipeline: StableDiffusionPipeline, source: str) -> None:
    """Refuses what loads but is conditioned otherwise: SDXL, inpainting, models that predict the clean image."""
    unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    width = pipeline.text_encoder.config.hidden_size
    channels = pipeline.vae.config["latent_channels"]
    if unet["cross_attention_dim"] != width or unet["addition_embed_type"]:
        raise _other_layout(source, f"its UNet does not attend to the {width} values per token of its text encoder")
    if unet["in_channels"] != channels or unet["out_channels"] != channels:
        raise _other_layout(source, f"its UNet does not map {channels} latent channels to as many")
    if scheduler["prediction_type"] not in ("epsilon", "v_prediction"):
        raise _other_layout(source, f"it predicts {scheduler['prediction_type']!r}, not noise or velocity")


def _other_layout(source: str, reason: str) -> MismatchError:
    return MismatchError(
        f"{source!r} is not a text-to-image model in the Stable Diffusion layout: {reason}",
        f"give one with {', '.join(PARTS)}, such as Stable Diffusion 1.5",
    )


def _fingerprint(networks: tuple[torch.nn.Module, ...], scheduler_config: Mapping[str, Any]) -> str:
    """Over a sample of every tensor: cheap, and different for other weights."""
    probes = [
        {name: [*p.shape, *p.detach().flatten()[:4].tolist()] for name, p in network.named_parameters()}
        for network in networks
    ]
    return hash_json([probes, {name: scheduler_config.get(name) for name in NOISE_SCHEDULE}])
