"""The LoRA as ComfyUI, A1111 and kohya's own scripts read it: their names of layers, alphas, and ModelSpec metadata.

The names are those of kohya-ss/sd-scripts (`networks/lora.py`), which for Stable Diffusion XL go by Stability AI's
blocks instead of diffusers'; the metadata is Stability AI's ModelSpec 1.0.1. The difficulty encoder has no place in
such a file: what it holds acts as difficulty's null token does.
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
from dcdm_cli.model.text import pooled_width

KOHYA_FILE = "comfyui_a1111_lora.safetensors"
_LAYERS = {"lora_A": "lora_down", "lora_B": "lora_up"}
_FAMILIES = {  # by text width
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2-512", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
_OUTSIDE = {  # diffusers' names -> Stability AI's, of layers outside of blocks
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def save_kohya(unet: UNet2DConditionModel, folder: Path, *, title: str, resolution: int, base: str) -> None:
    """Writes `comfyui_a1111_lora.safetensors` from the UNet's adapter, in float32. base: as the adapter names it."""
    config: Any = unet.peft_config[ADAPTER_NAME]
    state = kohya_state(unet, get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME), config.lora_alpha)
    # the text's width tells the families apart; a base of another width, such as the packaged ones, is of none
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


def kohya_state(unet: UNet2DConditionModel, state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """peft's tensors (`....to_q.lora_A.weight`) under kohya's names (`lora_unet_..._to_q.lora_down.weight`), each layer
    with its alpha."""
    found: dict[str, Tensor] = {}
    xl = pooled_width(unet.config) is not None
    for key, tensor in state.items():
        module, layer, weight = key.rsplit(".", 2)
        module = stability_name(unet, module) if xl else module
        name = "lora_unet_" + module.replace(".", "_")
        found[f"{name}.{_LAYERS[layer]}.{weight}"] = tensor.detach().cpu().contiguous()
        # without it a reader would have to guess how strongly the layer acts
        found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return found


def stability_name(unet: UNet2DConditionModel, module: str) -> str:
    """A layer of Stable Diffusion XL's UNet by the name that it has in Stability AI's own network:
    `down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    block, rest = module.split(".", 1)
    if block == "mid_block":
        kind, at, layer = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(at)}.{_inside(kind, layer)}"
    stage, kind, at, layer = rest.split(".", 3)
    down, blocks = block == "down_blocks", list(getattr(unet, block))
    resnets = [len(one.resnets) for one in blocks]
    # Theirs counts resnets: one a block, each with its attention; on the way down what makes smaller is a block too.
    first = 1 + sum(resnets[: int(stage)]) + int(stage) if down else sum(resnets[: int(stage)])
    attends = hasattr(blocks[int(stage)], "attentions")
    index, slot = {
        "resnets": (first + int(at), 0),
        "attentions": (first + int(at), 1),
        "downsamplers": (first + resnets[int(stage)], 0),
        "upsamplers": (first + resnets[int(stage)] - 1, 1 + attends),
    }[kind]
    return f"{'input' if down else 'output'}_blocks.{index}.{slot}.{_inside(kind, layer)}"


def _inside(kind: str, layer: str) -> str:
    if kind == "downsamplers":
        return "op"
    return _RESNET.get(layer, layer) if kind == "resnets" else layer
