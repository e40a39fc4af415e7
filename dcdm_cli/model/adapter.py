"""The adapter folder: what fine-tuning leaves behind and generation, export and other tools read.

pytorch_lora_weights.safetensors  loads in plain diffusers with `load_lora_weights`
difficulty_encoder.safetensors    the encoder's weights; absent for a plain LoRA
config.json                       base, class names, encoder shape, training settings, hashes
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from diffusers import UNet2DConditionModel
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import hash_bytes, write_json, write_text
from dcdm_cli.gate import ClassNames, Text, Word, read_document
from dcdm_cli.model.conditioning import DifficultyEncoder, EncoderConfig
from dcdm_cli.model.lora import LORA_FILE, save_lora

ENCODER_FILE, CONFIG_FILE, CALIBRATION_FILE = "difficulty_encoder.safetensors", "config.json", "calibration.json"
AGAIN = "make it again: dcdm finetune --force"


@dataclass(frozen=True)
class AdapterInfo:
    """config.json. encoder None = plain LoRA, the control without difficulty. base, revision, variant, base_config: as
    `load_base` takes them."""

    base: Text
    base_fingerprint: Word
    revision: Word | None
    class_names: ClassNames
    resolution: Annotated[int, Field(ge=1, le=2**16)]
    encoder: EncoderConfig | None
    training: dict[str, Any]
    schema: Literal[1] = 1
    variant: Text | None = None
    base_config: Text | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Keyword arguments of `load_base` that say where the base lies."""
        return {"revision": self.revision, "variant": self.variant, "config": self.base_config}


def save_adapter(
    folder: Path, unet: UNet2DConditionModel, encoder: DifficultyEncoder | None, info: AdapterInfo
) -> None:
    """Writes into an existing (temporary) folder."""
    save_lora(unet, folder)
    if encoder is not None:
        state = {name: p.detach().cpu().contiguous() for name, p in encoder.state_dict().items()}
        save_file(state, folder / ENCODER_FILE, metadata={"config": json.dumps(asdict(encoder.config))})
    write_json(folder / CONFIG_FILE, asdict(info))
    write_text(folder / "README.md", _card(info))


def read_adapter(folder: Path) -> AdapterInfo:
    """Raises NotFoundError when there is none, MismatchError when config.json is not ours."""
    file = folder / CONFIG_FILE
    if not file.is_file() or not (folder / LORA_FILE).is_file():
        raise NotFoundError(f"no adapter in {folder}", "make it first: dcdm finetune", file=folder)
    info = read_document(file, AdapterInfo, AGAIN)
    if info.encoder is not None and info.encoder.classes != len(info.class_names):
        fault = f"encoder.classes = {info.encoder.classes}, but there are {len(info.class_names)} class names"
        raise MismatchError(f"{file} is damaged: {fault}", AGAIN, file=file)
    return info


def load_encoder(folder: Path, info: AdapterInfo) -> DifficultyEncoder | None:
    """None for a plain LoRA. Raises MismatchError when the weights are missing, damaged or of another shape."""
    if info.encoder is None:
        return None
    try:
        encoder = DifficultyEncoder(info.encoder)
        encoder.load_state_dict(load_file(folder / ENCODER_FILE))
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:
        file = folder / ENCODER_FILE
        raise MismatchError(f"{file} does not fit config.json: {error}", "dcdm finetune --force", file=file) from error
    return encoder.eval()


def adapter_hash(folder: Path) -> str:
    """Over the weights and their metadata alone, so that a new calibration does not change it, and equal for equal
    ones: safetensors writes its metadata in another order every time. Raises MismatchError for a damaged file."""
    files = [folder / name for name in (LORA_FILE, ENCODER_FILE) if (folder / name).is_file()]
    try:
        return hash_bytes(*(part for file in files for part in _tensor_parts(file)))
    except SafetensorError as error:
        raise MismatchError(f"the adapter in {folder} is damaged: {error}", "dcdm finetune --force") from error


def _tensor_parts(file: Path) -> Iterator[bytes]:
    with safe_open(file, "np") as stored:
        yield json.dumps(stored.metadata(), sort_keys=True).encode()
        for name in sorted(stored.keys()):
            tensor = stored.get_tensor(name)
            yield f"{name} {tensor.dtype} {tensor.shape}".encode()
            yield tensor.tobytes()


def _card(info: AdapterInfo) -> str:
    use = (
        "The LoRA alone (no difficulty) in plain diffusers:\n\n```python\n"
        "pipeline = StableDiffusionPipeline.from_pretrained(BASE)\n"
        "pipeline.load_lora_weights(THIS_FOLDER)\n```\n"
    )
    encoder = (
        f"`{ENCODER_FILE}` holds an MLP (label, difficulty) -> tokens, described in `{CONFIG_FILE}` under `encoder`; "
        f"its tokens are joined to the text encoding (mode `{info.encoder.mode}`). `dcdm generate` does it.\n"
        if info.encoder
        else "A plain LoRA without difficulty: the control.\n"
    )
    head = f"Base model: `{info.base}` (its licence applies). Classes: {len(info.class_names)}."
    return f"# DCDM adapter\n\n{head}\n\n{use}\n{encoder}"
