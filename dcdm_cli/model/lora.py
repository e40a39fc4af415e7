"""LoRA on the UNet through peft, saved so that plain diffusers loads it with `load_lora_weights`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.model.text import Pipeline
from dcdm_cli.run.finite import refuse_not_finite_weights

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_NAME = "dcdm"


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Adds trainable float32 LoRA layers; everything else stays frozen. Raises UsageError when no module matches."""
    unet.requires_grad_(False)
    # "gaussian" draws A and leaves B at 0: a fresh LoRA changes nothing yet
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))
    try:
        unet.add_adapter(config, adapter_name=ADAPTER_NAME)
    except ValueError as error:
        raise UsageError(
            f"finetune.lora_targets = {list(targets)} match no module of the UNet",
            "the usual ones: to_q to_k to_v to_out.0",
        ) from error
    for parameter in unet.parameters():
        if parameter.requires_grad:  # half-precision trainable weights lose small updates
            parameter.data = parameter.data.float()


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes `pytorch_lora_weights.safetensors` with the adapter's metadata, without which alpha would be guessed."""
    # in peft's own names: converted to diffusers' older ones, convolutions and feed-forward layers do not load again
    state = get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        unet_lora_adapter_metadata=unet.peft_config[ADAPTER_NAME].to_dict(),
        safe_serialization=True,
    )


def load_lora(unet: UNet2DConditionModel, folder: Path, scale: float = 1.0) -> None:
    """Loads an adapter and fuses it into the weights at `scale`, so that inference pays nothing for it.

    Raises what `inject_lora` raises.
    """
    inject_lora(unet, folder)
    fuse(unet, ADAPTER_NAME, scale)


def fuse(unet: UNet2DConditionModel, name: str, scale: float) -> None:
    """A loaded LoRA becomes part of the weights, for good."""
    unet.fuse_lora(lora_scale=scale, adapter_names=[name])
    unet.unload_lora()


def inject_lora(unet: UNet2DConditionModel, folder: Path, scale: float = 1.0) -> None:
    """Adds an adapter's layers beside the frozen weights, acting at `scale`.

    Raises NotFoundError when there is none, MismatchError when it is damaged or made for another UNet.
    """
    file = folder / LORA_FILE
    if not file.is_file():
        raise NotFoundError(f"no adapter at {file}", "make it first: dcdm finetune", file=file)
    _load_adapter(unet, folder, ADAPTER_NAME)
    unet.set_adapters([ADAPTER_NAME], [scale])


def attach_lora(pipe: Pipeline, folder: Path, name: str) -> None:
    """Loads the adapter into a pipeline, unfused and at full strength, unless it is there under whatever name.

    name: what diffusers shall call it; one that was fused under this name counts as there. Raises UsageError when the
    pipe has other LoRAs, whose weights only their owner knows, MismatchError as `load_lora` does.
    """
    others = list(getattr(pipe.unet, "peft_config", {}))
    if name in pipe.fused_loras or any(_is_the_same(pipe.unet, folder, other) for other in others):
        return
    if others:
        raise UsageError(
            f"the pipe has other LoRAs: {', '.join(others)}",
            f"pipe.unload_lora_weights() first, or load this one yourself, pipe.load_lora_weights({str(folder)!r}, "
            f"adapter_name={name!r}), and say how strong each is: pipe.set_adapters",
        )
    _load_adapter(pipe.unet, folder, name)


def _load_adapter(unet: UNet2DConditionModel, folder: Path, name: str) -> None:
    load_into(
        unet,
        folder / LORA_FILE,
        name,
        again="train it again: dcdm finetune --force",
        remedy="use the base it was trained on, or fine-tune again",
    )


def load_into(unet: UNet2DConditionModel, file: Path, name: str, *, again: str, remedy: str) -> None:
    """Adds a LoRA of the UNet alone, in diffusers' or kohya's names, as the adapter `name`.

    Raises MismatchError where it is damaged or made for another UNet, or for more than it. again, remedy: what helps
    where values are not finite, and where it does not fit.
    """
    try:
        loaded: Any = StableDiffusionPipeline.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            use_safetensors=True,
            return_lora_metadata=True,
            unet_config=unet.config,  # by which kohya's names of XL's blocks are understood
        )
        state, alphas, metadata = loaded
        # loading filters by the prefix `unet`: a text encoder's half would be dropped without a word
        others = sorted({key.partition(".")[0] for key in state if not key.startswith("unet.")})
        if others or not state:
            raise ValueError(f"it has weights for {', '.join(others) or 'nothing'}, and the UNet alone is changed")
        refuse_not_finite_weights(state, file, again)
        StableDiffusionPipeline.load_lora_into_unet(
            state, network_alphas=alphas, unet=unet, adapter_name=name, metadata=metadata
        )
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise MismatchError(f"{file} does not fit this base model: {error}", remedy, file=file) from error


def _is_the_same(unet: UNet2DConditionModel, folder: Path, name: str) -> bool:
    """Whether the loaded adapter `name` has the file's weights."""
    stored = {key.removeprefix("unet."): tensor for key, tensor in load_file(folder / LORA_FILE).items()}
    loaded = get_peft_model_state_dict(unet, adapter_name=name)
    # a pipe in half precision has rounded the file's float32: the file is compared as rounded
    return stored.keys() == loaded.keys() and all(
        torch.equal(tensor.to(loaded[key].device, loaded[key].dtype), loaded[key]) for key, tensor in stored.items()
    )


def lora_parameters(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    return [p for p in unet.parameters() if p.requires_grad]
