"""The adapter folder: what fine-tuning leaves behind and generation, export and other tools read.

pytorch_lora_weights.safetensors  loads in plain diffusers with `load_lora_weights`
comfyui_a1111_lora.safetensors    the same LoRA as ComfyUI and A1111 read it
difficulty_encoder.safetensors    the encoder's weights; absent for a plain LoRA
config.json                       base, class names, encoder shape, training settings, hashes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import hash_bytes, write_json, write_text
from dcdm_cli.gate import ClassNames, Finite, Share, Text, Word, read_document
from dcdm_cli.model.card import CARD_FILE, adapter_card
from dcdm_cli.model.conditioning import ENCODER_FILE, EncoderConfig
from dcdm_cli.model.kohya import KOHYA_FILE, save_kohya
from dcdm_cli.model.lora import LORA_FILE, save_lora
from dcdm_cli.section import Side

CONFIG_FILE, CALIBRATION_FILE = "config.json", "calibration.json"
ADAPTER_FILES = (LORA_FILE, KOHYA_FILE, ENCODER_FILE, CONFIG_FILE, CALIBRATION_FILE, CARD_FILE)
AGAIN = "make it again: dcdm finetune --force"


@dataclass(frozen=True)
class Distilled:
    """What one call of a distilled adapter stands for: settings of `dcdm generate` by their names. teacher: hash of the
    adapter that it was distilled from."""

    text_guidance: Finite
    difficulty_guidance: Finite
    guidance_interval: tuple[Share, Share] | None
    negative_prompt: Text
    lora_scale: Finite
    teacher: Word

    @property
    def scales(self) -> str:
        return f"text {self.text_guidance:g} and difficulty {self.difficulty_guidance:g}"


@dataclass(frozen=True)
class AdapterInfo:
    """config.json. encoder None = plain LoRA, the control without difficulty. base, revision, variant, base_config: as
    `load_base` takes them. dataset: the images' id on the hub, None = they are not from there. distilled: None = it is
    guided by several calls."""

    base: Text
    base_fingerprint: Word
    revision: Word | None
    class_names: ClassNames
    resolution: Side
    encoder: EncoderConfig | None
    training: dict[str, Any]
    schema: Literal[1] = 1
    variant: Text | None = None
    base_config: Text | None = None
    dataset: Text | None = None
    distilled: Distilled | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Keyword arguments of `load_base` that say where the base lies."""
        return {"revision": self.revision, "variant": self.variant, "config": self.base_config}


def save_adapter(folder: Path, unet: UNet2DConditionModel, encoder: nn.Module | None, info: AdapterInfo) -> None:
    """Writes into an existing (temporary) folder. encoder: of the shape that `info` says, None for a plain LoRA."""
    save_lora(unet, folder)
    save_kohya(unet, folder, title=f"DCDM, {len(info.class_names)} classes", resolution=info.resolution, base=info.base)
    if encoder is not None and info.encoder is not None:
        save_encoder(folder, encoder.state_dict(), info.encoder)
    write_json(folder / CONFIG_FILE, asdict(info))
    guided = info.distilled.scales if info.distilled else ""
    card = adapter_card(info.base, info.class_names, info.resolution, info.encoder, info.dataset, guided)
    write_text(folder / CARD_FILE, card)


def save_encoder(folder: Path, weights: Mapping[str, Tensor], config: EncoderConfig) -> None:
    """Writes the encoder's weights with their shape in the file's metadata."""
    # safetensors refuses tensors that are not contiguous
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(state, folder / ENCODER_FILE, metadata={"config": json.dumps(asdict(config))})


def read_adapter(folder: Path) -> AdapterInfo:
    """Raises NotFoundError when there is none, MismatchError when config.json is not ours."""
    file = folder / CONFIG_FILE
    if not file.is_file() or not (folder / LORA_FILE).is_file():
        raise NotFoundError(f"no adapter in {folder}", "make it first: dcdm finetune", file=folder)
    info = read_document(file, AdapterInfo, AGAIN)
    # each may be right by itself, but a label has to mean the same place in both
    if info.encoder is not None and info.encoder.classes != len(info.class_names):
        fault = f"encoder.classes = {info.encoder.classes}, but there are {len(info.class_names)} class names"
        raise MismatchError(f"{file} is damaged: {fault}", AGAIN, file=file)
    return info


def adapter_hash(folder: Path) -> str:
    """Over the weights and their metadata alone, so that a new calibration does not change it, and equal for equal
    ones: safetensors writes its metadata in another order every time. Raises MismatchError for a damaged file."""
    # not the file for ComfyUI, which is made from the first of these
    files = [folder / name for name in (LORA_FILE, ENCODER_FILE) if (folder / name).is_file()]
    try:
        return hash_bytes(*(part for file in files for part in tensor_parts(file)))
    except SafetensorError as error:
        raise MismatchError(f"the adapter in {folder} is damaged: {error}", "dcdm finetune --force") from error


def tensor_parts(file: Path) -> Iterator[bytes]:
    """Everything that a safetensors file says, in an order that does not depend on how it was written."""
    with safe_open(file, "np") as stored:
        yield json.dumps(stored.metadata(), sort_keys=True).encode()
        for name in sorted(stored.keys()):
            tensor = stored.get_tensor(name)
            # the same bytes in another shape or dtype are other weights
            yield f"{name} {tensor.dtype} {tensor.shape}".encode()
            yield tensor.tobytes()
