"""The adapter's card: what the hub reads, what people read, and Python that runs as it stands in that folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dcdm_cli.model.conditioning import ENCODER_FILE, EncoderConfig
from dcdm_cli.model.packaged import PACKAGED

CARD_FILE = "README.md"
TAGS = ["dcdm", "difficulty", "diffusers", "lora", "stable-diffusion", "text-to-image"]
_WITH_DIFFICULTY = """\
import torch
from dcdm_cli import DifficultyEncoder
from diffusers import DiffusionPipeline

ADAPTER = "."  # this folder, or its id on the hub
encoder = DifficultyEncoder.from_pretrained(ADAPTER)
pipe = DiffusionPipeline.from_pretrained(encoder.base, dtype=torch.float32)  # on a GPU float16, for all its parts
wanted = encoder.condition(pipe, {prompt}, label={label}, difficulty=0.6)  # loads the LoRA
image = pipe(**wanted, guidance_scale={scale}, height={side}, width={side}).images[0]
image.save("image.png")
"""
_PLAIN = """\
import torch
from dcdm_cli.model.packaged import resolve_base
from diffusers import DiffusionPipeline

ADAPTER = "."  # this folder, or its id on the hub
pipe = DiffusionPipeline.from_pretrained(resolve_base({base}), dtype=torch.float32)  # on a GPU float16
pipe.load_lora_weights(ADAPTER)
image = pipe({prompt}, guidance_scale={scale}, height={side}, width={side}).images[0]
image.save("image.png")
"""


def adapter_card(
    base: str,
    class_names: Sequence[str],
    resolution: int,
    encoder: EncoderConfig | None,
    dataset: str | None,
    guided: str = "",
) -> str:
    """base: as the adapter's config.json calls it; encoder None = a plain LoRA; dataset: hub id of the images; guided:
    the scales that its single call stands for."""
    plain = [name for name in class_names if name.isprintable() and "`" not in name]  # a fence must stay a fence
    name, label = (plain[0], repr(plain[0])) if plain else ("thing", "0")
    # repr, as names and folders may hold quotes and backslashes, and the snippet has to run
    values = {"prompt": repr(f"a photo of a {name}"), "label": label, "side": resolution, "base": repr(base)}
    values["scale"] = "1.0" if guided else "3.0"
    snippet = (_WITH_DIFFICULTY if encoder else _PLAIN).format(**values)
    what = (
        f"A LoRA (`pytorch_lora_weights.safetensors`) and a difficulty encoder (`{ENCODER_FILE}`), an MLP from class "
        f"and difficulty to {encoder.tokens} tokens that join the text encoding (mode `{encoder.mode}`). "
        "Difficulty runs from 0, easy, to 1, hard. What to ask for to get a "
        "wanted difficulty is in `calibration.json`, by which `dcdm generate` asks."
        if encoder
        else "A plain LoRA without difficulty: the control."
    )
    if guided:
        what += f" Distilled: one network call gives what guidance by {guided} gives, so `guidance_scale` stays 1."
    return (
        f"---\n{_metadata(base, dataset).to_yaml()}\n---\n\n# DCDM adapter\n\n{what}\n\n{_base_line(base)} "
        f"Classes: {len(class_names)}. Needs `pip install dcdm-cli`; in this folder:\n\n```python\n{snippet}```\n\n"
        "For ComfyUI and A1111 the LoRA is `comfyui_a1111_lora.safetensors`: without the encoder, which they cannot "
        "read, difficulty is not chosen.\n"
    )


def _metadata(base: str, dataset: str | None) -> ModelCardData:
    """What the hub shows and searches. A folder on somebody's disk is nothing that it knows."""
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": TAGS}
    on_hub = base not in PACKAGED and not Path(base).is_absolute()
    if on_hub:
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    if base in PACKAGED:
        facts["license"] = "apache-2.0"
    else:
        facts |= {"license": "other", "license_name": "of-the-base-model"}
        facts |= {"license_link": f"https://huggingface.co/{base}"} if on_hub else {}
    return ModelCardData(**facts, datasets=[dataset] if dataset else None)


def _base_line(base: str) -> str:
    if base in PACKAGED:
        return f"Base model: {base}, which comes with dcdm-cli, where `encoder.base` finds it."
    return f"Base model: `{base}` (its licence applies)."
