"""Loading the base model: any pipeline folder, hub id or single file in the layout of Stable Diffusion or its XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import hash_json
from dcdm_cli.model.layout import base_warnings, check_index, check_parts, is_xl, other_layout, other_sizes
from dcdm_cli.model.packaged import resolve_base
from dcdm_cli.model.text import Pipeline, TwoTextEncoders, text_encoder_of, token_ids, tokenizers_of
from dcdm_cli.run import one_off
from dcdm_cli.run.finite import refuse_not_finite_weights
from dcdm_cli.run.network import from_hub, reason

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HALF_VARIANT = "fp16"
NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


@dataclass(frozen=True)
class BaseModel:
    """The frozen parts. `vae` stays in float32: latents are encoded in it, and `torch_decoder` makes its own copy.

    fingerprint: hash of the weights as loaded in float32, the same for every dtype and wherever the folder lies; empty
    when a part was left without its weights. variant: of the weight files. warnings: what goes badly with this base.
    tokenizer_2: of Stable Diffusion XL, whose two text encoders are one here; None = there is one of each.
    """

    source: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel | TwoTextEncoders
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    fingerprint: str
    variant: str | None = None
    warnings: tuple[str, ...] = ()
    tokenizer_2: CLIPTokenizer | None = None

    @property
    def latent_size(self) -> int:
        """Pixels per latent cell, 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def text_shape(self) -> tuple[int, int]:
        """[T, D] of the text condition, the row of a pooled embedding counted."""
        rows = self.tokenizer.model_max_length + isinstance(self.text_encoder, TwoTextEncoders)
        return rows, self.unet.config["cross_attention_dim"]

    @property
    def overflows(self) -> bool:
        """Whether the VAE leaves the range of fp16. Stable Diffusion XL's does, unless its config says that it was
        mended; those of 1.5 and 2.1 do not, though their configs say nothing else."""
        return isinstance(self.text_encoder, TwoTextEncoders) and bool(self.vae.config["force_upcast"])


@one_off.loading()
def load_base(
    source: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    hollow: Sequence[str] = (),
) -> BaseModel:
    """source: `tiny`, a folder, a hub id or one .safetensors file in Stable Diffusion's own format.

    variant: of the weights' files, as in `diffusion_pytorch_model.fp16.safetensors`; None = the plain ones, or fp16
    where there are no others. config: for a single file, a folder with the model's configs and tokenizer; None = those
    that diffusers knows for it, from the hub or its cache. hollow: of `unet` and `vae`, those to have their shapes but
    no weights, as far as their configs are at hand. Raises NotFoundError when it cannot be had, MismatchError for
    another layout, NumericalError for weights that are not finite.
    """
    # console.py alone prints; both libraries would draw bars of their own
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    place = _Place(source, resolve_base(source), revision, config)
    pipeline, index, variant = _loaded(place, variant, hollow)
    check_parts(source, pipeline)
    networks = (pipeline.unet, pipeline.vae, text_encoder_of(pipeline))
    scheduler_config = dict(pipeline.scheduler.config)
    warnings = base_warnings(source, _scheduler_class(index, pipeline), scheduler_config)
    for part in networks:
        again = "download it again, or use another base or variant: --base, --variant"
        refuse_not_finite_weights(dict(part.named_parameters()), f"the base model {place.path}", again)
    # before they are cast, so that every dtype has the same
    fingerprint = "" if hollow else _fingerprint(networks, scheduler_config)
    for part in networks:
        _settle(part, device, torch.float32 if part is pipeline.vae else DTYPES[dtype])
    first, second = tokenizers_of(pipeline)
    return BaseModel(str(source), *networks, first, scheduler_config, fingerprint, variant, warnings, second)


def _loaded(
    place: _Place, variant: str | None, hollow: Sequence[str]
) -> tuple[Pipeline, Mapping[str, Any] | None, str | None]:
    """The pipeline, its index (None for a single file that has none), and the variant that it was read from. Raises
    NotFoundError and MismatchError as `load_base`."""
    local = place.is_file and place.config is not None  # else a file's configs may have to come from the hub
    try:
        # "" is no path of this machine: the hub is asked, since the file lies here and its configs may not
        with nullcontext() if local else from_hub(place.path if place.configs is not None else ""):
            index = place.index()
            if index is not None:
                check_index(place.source, index)
            pipeline, variant = place.load(place.kind(index), variant, hollow)
    except (OSError, ValueError, SafetensorError, SingleFileComponentError) as error:
        raise _not_loaded(place, error) from error
    except TypeError as error:
        raise other_layout(place.source, str(error)) from error
    except RuntimeError as error:
        # transformers' words where weights do not fit a config, which it makes up when there is none
        if "mismatched_sizes" not in str(error):
            raise
        raise other_sizes(place.source) from error
    return pipeline, index, variant


@dataclass(frozen=True)
class _Place:
    """Where a base lies. source: as it was given. path: the folder, hub id or file. config: see `load_base`."""

    source: str
    path: str
    revision: str | None
    config: str | None

    @property
    def is_file(self) -> bool:
        return Path(self.path).is_file()

    @property
    def configs(self) -> str | None:
        """Where the parts' configs are; None = diffusers finds out."""
        return self.config if self.is_file else self.path

    def index(self) -> dict[str, Any] | None:
        """The pipeline's model_index.json. Raises what `load_base` raises for a file that cannot be read."""
        if self.is_file and Path(self.path).suffix != ".safetensors":
            raise MismatchError(
                f"{self.path} is not a .safetensors file; others can run code when they are opened",
                "give the .safetensors of the same model, or a diffusers pipeline folder",
                file=self.path,
            )
        if self.configs is None:
            return None
        # of a file the configs are a folder of the user's, which has no revisions
        index: Any = StableDiffusionPipeline.load_config(self.configs, revision=None if self.is_file else self.revision)
        return index

    def kind(self, index: Mapping[str, Any] | None) -> type[Pipeline]:
        """index: as `index` gives it; without one, the names of a file's weights tell."""
        if index is not None:
            return StableDiffusionXLPipeline if is_xl(index) else StableDiffusionPipeline
        with safe_open(self.path, "np") as weights:
            names = weights.keys()
        # Stability AI's name for the text encoders of XL; 1.x and 2.x have a `cond_stage_model`
        xl = any(name.startswith("conditioner.embedders.") for name in names)
        return StableDiffusionXLPipeline if xl else StableDiffusionPipeline

    def load(self, kind: type[Pipeline], variant: str | None, hollow: Sequence[str]) -> tuple[Pipeline, str | None]:
        """The pipeline in float32, and the variant that it was read from."""
        common: dict[str, Any] = {"add_watermarker": False}
        if kind is StableDiffusionPipeline:
            common = {"safety_checker": None, "requires_safety_checker": False}
        if self.configs is not None:
            common |= {part: _hollow(part, self.configs, self.revision) for part in hollow}
        if self.is_file:
            local = self.config is not None
            return kind.from_single_file(
                self.path, config=self.config, local_files_only=local, torch_dtype=torch.float32, **common
            ), None
        # use_safetensors: diffusers would take a pickle where there is nothing else, and a pickle can run code
        common |= {"revision": self.revision, "dtype": torch.float32, "use_safetensors": True}
        try:
            return kind.from_pretrained(self.path, variant=variant, **common), variant
        except (OSError, ValueError) as error:  # a folder of fp16 weights alone is not found without being told
            if variant is not None:
                raise
            try:
                return kind.from_pretrained(self.path, variant=HALF_VARIANT, **common), HALF_VARIANT
            except (OSError, ValueError):
                # fp16 was only a guess: it is the plain weights that are missing
                raise error from None


def _not_loaded(place: _Place, error: Exception) -> NotFoundError:
    hint = "give a diffusers pipeline folder or a hub id with --base; without a network download it first"
    if place.is_file and place.config is None:
        hint = (
            "name a folder with the model's configs and tokenizer (a diffusers folder; its weights are not needed): "
            "--base-config DIR"
        )
    return NotFoundError(
        f"cannot load the base model {place.source!r}: {reason(error)}",
        hint,
        file=place.source if Path(place.source).exists() else None,
    )


def _scheduler_class(index: Mapping[str, Any] | None, pipeline: Pipeline) -> str:
    return index["scheduler"][1] if index else type(pipeline.scheduler).__name__


@torch.no_grad()
def encode_text(base: BaseModel, captions: list[str]) -> torch.Tensor:
    """Captions -> float [N, T, D] on the encoder's device, as `BaseModel.text_shape` has it; longer ones are cut at the
    tokenizer's limit."""
    return base.text_encoder(tokenize(base, captions).to(base.text_encoder.device))[0]


def tokenize(base: BaseModel, captions: list[str]) -> torch.Tensor:
    """Captions -> int64 [N, T], what the base's text encoder takes; of two tokenizers [N, 2T]."""
    return token_ids([base.tokenizer, base.tokenizer_2], captions)


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


def _fingerprint(networks: tuple[torch.nn.Module, ...], scheduler_config: Mapping[str, Any]) -> str:
    """Over a sample of every tensor: cheap, and different for other weights. Buffers count where they change what comes
    out: the empty prompt that stands for zeros."""
    probes = [
        {name: [*p.shape, *p.detach().flatten()[:4].tolist()] for name, p in network.named_parameters()}
        for network in networks
    ]
    schedule = {name: scheduler_config.get(name) for name in NOISE_SCHEDULE}
    empty = [one for one in (getattr(network, "empty", None) for network in networks) if one is not None]
    return hash_json([probes, schedule, *(ids.tolist() for ids in empty)])
