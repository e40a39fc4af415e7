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

from dcdm_cli.errors import MismatchError, NotFoundError, UsageError

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_NAME = "dcdm"


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Adds trainable float32 LoRA layers; everything else stays frozen. Raises UsageError when no module matches."""
    unet.requires_grad_(False)
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
    unet.fuse_lora(lora_scale=scale, adapter_names=[ADAPTER_NAME])
    unet.unload_lora()


def inject_lora(unet: UNet2DConditionModel, folder: Path, scale: float = 1.0) -> None:
    """Adds an adapter's layers beside the frozen weights, acting at `scale`.

    Raises NotFoundError when there is none, MismatchError when it is damaged or made for another UNet.
    """
    file = folder / LORA_FILE
    if not file.is_file():
        raise NotFoundError(f"no adapter at {file}", "make it first: dcdm finetune", file=file)
    try:
        loaded: Any = StableDiffusionPipeline.lora_state_dict(
            str(folder), weight_name=LORA_FILE, use_safetensors=True, return_lora_metadata=True
        )
        state, alphas, metadata = loaded
        StableDiffusionPipeline.load_lora_into_unet(
            state, network_alphas=alphas, unet=unet, adapter_name=ADAPTER_NAME, metadata=metadata
        )
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise MismatchError(
            f"{file} does not fit this base model: {error}",
            "use the base it was trained on, or fine-tune again",
            file=file,
        ) from error
    unet.set_adapters([ADAPTER_NAME], [scale])


def lora_parameters(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    return [p for p in unet.parameters() if p.requires_grad]
