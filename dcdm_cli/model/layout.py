"""What a pipeline's configs say of it: whether it can be a base, and what is known to go badly with it.

The fused network is conditioned on text tokens and the timestep, for Stable Diffusion XL also on a pooled text and
sizes, and on nothing else. A UNet field that brings in another condition must be as it is by default: such a model
loads, and then trains silently wrong or ends in an error deep inside.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from dcdm_cli.errors import MismatchError
from dcdm_cli.model.text import POOLED, SIZES, Pipeline, pooled_width, tokenizers_of
from dcdm_cli.model.tokens import MOST_TOKENS

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
XL_CLASSES = {"text_encoder_2": "CLIPTextModelWithProjection"}
XL_PARTS = ("text_encoder_2", "tokenizer_2")
# Fields by which a UNet takes a pooled text and sizes: `check_pooled` looks at them.
POOLED_FIELDS = {"addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}
# Fields of a UNet's config that shape it and bring in no condition: any value is fine.
SHAPE = {
    "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift",
    "down_block_types", "mid_block_type", "up_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "dropout", "act_fn", "norm_num_groups",
    "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
    "attention_head_dim", "num_attention_heads", "use_linear_projection", "upcast_attention",
    "resnet_time_scale_shift", "resnet_skip_time_act", "resnet_out_scale_factor", "time_embedding_type",
    "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "conv_in_kernel", "conv_out_kernel",
    "addition_embed_type_num_heads", "mid_block_only_cross_attention", "cross_attention_norm", "dual_cross_attention",
}  # fmt: skip
MEANING = {
    "time_cond_proj_dim": "it was distilled to take the guidance scale as an input (a latent consistency model)",
    "num_class_embeds": "it also takes a class or a noise level",
    "class_embed_type": "it also takes a class or an image embedding",
    "encoder_hid_dim": "it attends to something else than its text encoder's tokens",
    "encoder_hid_dim_type": "it attends to something else than its text encoder's tokens",
    "addition_embed_type": "it also takes a pooled embedding beside the text",
    "addition_time_embed_dim": "it also takes sizes beside the text",
    "projection_class_embeddings_input_dim": "it also takes an embedding beside the text",
    "attention_type": "it also takes boxes or other grounding",
}
FEW_STEPS = {"LCMScheduler", "TCDScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
FEW_STEPS_NAME = re.compile(r"turbo|lightning|(?<![a-z])(lcm|tcd|hyper-?sd|dmd2?|edm)(?![a-z])", re.IGNORECASE)


def check_index(source: str, index: Mapping[str, Any]) -> None:
    """index: a pipeline's model_index.json. Raises MismatchError before any weights are read."""
    # before the parts: a refiner lacks some, and "another layout" would not say what to do
    if index.get("requires_aesthetics_score"):
        raise refiner(source, "requires_aesthetics_score = true")
    if "transformer" in index:
        raise other_layout(source, "its network is a transformer, not a UNet")
    parts, classes = (PARTS + XL_PARTS, CLASSES | XL_CLASSES) if is_xl(index) else (PARTS, CLASSES)
    missing = set(parts) - {part for part in parts if _has(index, part)}
    if missing:
        raise other_layout(source, f"it has no {', '.join(sorted(missing))}")
    for part, wanted in classes.items():
        if index[part][1] != wanted:
            raise other_layout(source, f"its {part} is a {index[part][1]}, not a {wanted}")


def is_xl(index: Mapping[str, Any]) -> bool:
    """Whether a pipeline has two text encoders, as Stable Diffusion XL has."""
    return _has(index, "text_encoder_2")


def _has(index: Mapping[str, Any], part: str) -> bool:
    # a pipeline that was saved without a part lists it as [null, null]
    return bool((index.get(part) or [None])[0])


def check_parts(source: str, pipeline: Pipeline) -> None:
    """Refuses what loads but is conditioned otherwise, is of another width, or predicts the clean image."""
    unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    if pipeline.text_encoder is None:  # of a single file, whose index nobody has seen
        raise refiner(source, "it has no text_encoder")
    second = pipeline.text_encoder_2 if isinstance(pipeline, StableDiffusionXLPipeline) else None
    for name, value in other_conditions(unet).items():
        if second is None or name not in POOLED_FIELDS:
            reason = MEANING.get(name, "the conditioning knows nothing of it")
            raise other_layout(source, f"its UNet has {name} = {value!r}: {reason}")
    if isinstance(pipeline, StableDiffusionXLPipeline):
        check_pooled(source, pipeline)
    check_lengths(source, pipeline)
    # `TwoTextEncoders` puts their tokens side by side
    width = sum(encoder.config.hidden_size for encoder in (pipeline.text_encoder, second) if encoder is not None)
    channels = pipeline.vae.config["latent_channels"]
    if unet["cross_attention_dim"] != width:
        encoders = "its text encoder gives" if second is None else "its two text encoders give"
        raise other_layout(
            source,
            f"its UNet has cross_attention_dim = {unet['cross_attention_dim']}, {encoders} {width} values per token",
        )
    if pipeline.vae.config.get("latents_mean") is not None:
        raise other_layout(source, "its autoencoder has latents_mean: each channel of its latents is scaled apart")
    if unet["in_channels"] != channels or unet["out_channels"] != channels:
        raise other_layout(source, f"its UNet does not map {channels} latent channels to as many")
    if scheduler["prediction_type"] not in ("epsilon", "v_prediction"):
        raise other_layout(source, f"it predicts {scheduler['prediction_type']!r}, not noise or velocity")


def check_pooled(source: str, pipeline: StableDiffusionXLPipeline) -> None:
    """Refuses what has two text encoders and is conditioned otherwise than Stable Diffusion XL."""
    unet, second = pipeline.unet.config, pipeline.text_encoder_2.config
    if unet["addition_embed_type"] != POOLED:
        raise other_layout(
            source,
            f"it has two text encoders, and its UNet addition_embed_type = {unet['addition_embed_type']!r} instead of "
            f"{POOLED!r}",
        )
    if pooled_width(unet) != second.projection_dim:
        named = "projection_class_embeddings_input_dim"
        raise other_layout(
            source,
            f"its UNet has {named} = {unet[named]}, not {second.projection_dim} for the pooled text and {SIZES} x "
            f"{unet['addition_time_embed_dim']} for sizes, as refiners have it",
        )
    # it travels as a row of the text (text.py), and the padding there would cut off what is longer than a row
    if second.projection_dim > unet["cross_attention_dim"]:
        raise other_layout(source, f"its projection_dim = {second.projection_dim} is wider than a text token")
    # their ids travel side by side, and `TwoTextEncoders` takes them apart in the middle
    lengths = {tokenizer.model_max_length for tokenizer in tokenizers_of(pipeline) if tokenizer is not None}
    if len(lengths) > 1:
        raise other_layout(source, f"its tokenizers differ in model_max_length: {sorted(lengths)}")


def check_lengths(source: str, pipeline: Pipeline) -> None:
    """A tokenizer without its config knows no limit, and texts would be padded to it."""
    encoders = (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None))
    for tokenizer, encoder in zip(tokenizers_of(pipeline), encoders, strict=True):
        if tokenizer is None or encoder is None:
            continue
        reads, most = tokenizer.model_max_length, encoder.config.max_position_embeddings
        if reads > most:
            # transformers' stand-in for "no limit" has some thirty digits
            said = "no number" if reads > MOST_TOKENS else str(reads)
            raise MismatchError(
                f"{source!r} has a text encoder for {most} tokens, and its tokenizer's model_max_length is {said}",
                "get it again: a tokenizer's tokenizer_config.json is missing, or of another model",
            )


def other_conditions(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a UNet's config that are neither its shape nor as they are by default."""
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    # diffusers' own notes, such as the class and the folder it came from, begin with an underscore
    named = {name: value for name, value in unet.items() if not name.startswith("_") and name not in SHAPE}
    # a field that this diffusers does not know counts as a condition: nobody can say what it brings in
    return {name: value for name, value in named.items() if name not in known or value != known[name].default}


def base_warnings(source: str, scheduler: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """scheduler: class name, as in the index. config: of the scheduler.

    A model distilled for a few steps without guidance trains like any other and then breaks: DDIM or DPM-Solver with
    guidance takes its samples out of range, which looks like difficulty.
    """
    trailing = (scheduler, config.get("timestep_spacing")) == ("EulerDiscreteScheduler", "trailing")
    # the last part alone: a folder or an owner above it may be called anything
    name = re.split(r"[/\\]", source.rstrip("/\\"))[-1]
    found = (
        f"its scheduler is {scheduler}"
        if scheduler in FEW_STEPS
        else "its scheduler is that of SD-Turbo"
        if trailing and config.get("prediction_type") == "epsilon"
        else f"it is called {name}"
        if FEW_STEPS_NAME.search(name)
        else None
    )
    if found is None:
        return ()
    return (
        f"{source!r} seems to be distilled for a few steps without guidance ({found}); samplers with guidance break "
        "such models: use the model that it was distilled from, or set --text-guidance 1 --difficulty-guidance 1 and "
        "look at the pictures",
    )


def other_layout(source: str, reason: str) -> MismatchError:
    return MismatchError(
        f"{source!r} is not a text-to-image model in the Stable Diffusion layout: {reason}",
        f"give one with {', '.join(PARTS)}, such as Stable Diffusion 1.5, 2.1 or XL",
    )


def other_sizes(source: str) -> MismatchError:
    return MismatchError(
        f"{source!r} has weights of other sizes than its configs say",
        "get it again: a config.json is missing, or of another model",
    )


def refiner(source: str, field: str) -> MismatchError:
    return MismatchError(
        f"{source!r} is a refiner ({field}), which finishes what another model has begun",
        "give the base model that it belongs to: --base stabilityai/stable-diffusion-xl-base-1.0",
    )
