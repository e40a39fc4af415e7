"""The LoRA as ComfyUI, A1111 and kohya's own scripts read it: their names of layers, alphas, and ModelSpec metadata.

The names are those of kohya-ss/sd-scripts (`networks/lora.py`); the metadata is Stability AI's ModelSpec 1.0.1. The
difficulty encoder has no place in such a file: what it holds acts as difficulty's null token does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from dcdm_cli.files import atomic_path
from dcdm_cli.model.lora import ADAPTER_NAME

KOHYA_FILE = "comfyui_a1111_lora.safetensors"
_LAYERS = {"lora_A": "lora_down", "lora_B": "lora_up"}
_FAMILIES = {768: ("stable-diffusion-v1", "sd_v1"), 1024: ("stable-diffusion-v2-512", "sd_v2")}  # by text width


def save_kohya(unet: UNet2DConditionModel, folder: Path, *, title: str, resolution: int, base: str) -> None:
    """Writes `comfyui_a1111_lora.safetensors` from the UNet's adapter, in float32. base: as the adapter names it."""
    config: Any = unet.peft_config[ADAPTER_NAME]
    state = kohya_state(get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME), config.lora_alpha)
    family, version = _FAMILIES.get(unet.config["cross_attention_dim"], ("custom", "custom"))
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.description": "LoRA of DCDM; difficulty needs dcdm-cli and the encoder beside this file",
        "modelspec.tags": "dcdm, lora, image-classification",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(config.lora_alpha),
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
        "ss_sd_model_name": Path(base).name,
        "ss_resolution": f"({resolution}, {resolution})",
    }
    with atomic_path(folder / KOHYA_FILE) as part:
        save_file(state, part, metadata=metadata)


def kohya_state(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """peft's tensors (`....to_q.lora_A.weight`) under kohya's names (`lora_unet_..._to_q.lora_down.weight`), each layer
    with its alpha."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module, layer, weight = key.rsplit(".", 2)
        name = "lora_unet_" + module.replace(".", "_")
        found[f"{name}.{_LAYERS[layer]}.{weight}"] = tensor.detach().cpu().contiguous()
        found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return found
