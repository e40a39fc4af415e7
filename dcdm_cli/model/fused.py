"""An adapter fused into its base: the one network that generation runs and export writes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from dcdm_cli.errors import MismatchError
from dcdm_cli.model.adapter import AdapterInfo, read_adapter
from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.encoder import load_encoder
from dcdm_cli.model.few_steps import ExtraLora, fuse_extra
from dcdm_cli.model.lora import load_lora


@dataclass(frozen=True)
class FusedModel:
    """network: UNet with the LoRA inside its weights, and the encoder. base.unet is the same UNet."""

    network: ConditionedUNet
    base: BaseModel
    info: AdapterInfo


def load_fused(
    adapter: Path,
    *,
    precision: str = "fp32",
    lora_scale: float = 1.0,
    device: str = "cpu",
    extra: ExtraLora | None = None,
) -> FusedModel:
    """Loads the base the adapter was trained on, and fuses the LoRA at `lora_scale`, and a few-step one if wanted.

    Raises MismatchError when the base's weights are not those the adapter was trained on.
    """
    info = read_adapter(adapter)
    model = load_base(info.base, **info.place, dtype=precision, device=device)
    # by the weights: the same id or folder may hold another model by now
    if model.fingerprint != info.base_fingerprint:
        raise MismatchError(
            f"the base model {model.source!r} is not the one this adapter was trained on",
            f"put that one back, or fine-tune again: dcdm finetune --base {shlex.quote(info.base)} --force",
        )
    load_lora(model.unet, adapter, lora_scale)
    if extra is not None:
        fuse_extra(model.unet, extra)
    return FusedModel(ConditionedUNet(model.unet, load_encoder(adapter, info), info.resolution), model, info)
