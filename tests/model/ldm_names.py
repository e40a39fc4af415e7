"""A pipeline folder's weights under the names of Stable Diffusion's own single files, the reverse of what diffusers
does when it reads one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = [
    (r"^add_embedding\.linear_1", "label_emb.0.0"), (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"), (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
]  # fmt: skip
RESNET = [
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
]  # fmt: skip
VAE = [
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"), (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"), ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"), ("group_norm", "norm"), (r"to_q\b", "q"), (r"to_k\b", "k"), (r"to_v\b", "v"),
    (r"to_out\.0", "proj_out"),
]  # fmt: skip
OPEN_CLIP = [
    (r"^text_model\.encoder\.layers", "transformer.resblocks"), (r"layer_norm(?=\d)", "ln_"), (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"), (r"self_attn\.(?=out_proj)", "attn."), (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"), (r"^text_projection\.weight", "text_projection"),
]  # fmt: skip


def write_single_file(folder: Path, target: Path) -> None:
    """Of Stable Diffusion or, where there is a second text encoder, of Stable Diffusion XL."""
    unet, vae = (load_file(folder / part / WEIGHTS) for part in ("unet", "vae"))
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    blocks = len(json.loads((folder / "vae" / "config.json").read_text())["up_block_types"])
    text = load_file(folder / "text_encoder" / "model.safetensors")
    clip = {f"transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.items()}
    renamed = {
        "model.diffusion_model.": {_unet_name(name, layers): tensor for name, tensor in unet.items()},
        "first_stage_model.": {_vae_name(name, blocks): _vae_shape(name, tensor) for name, tensor in vae.items()},
    }
    if (folder / "text_encoder_2").is_dir():
        second = load_file(folder / "text_encoder_2" / "model.safetensors")
        renamed |= {"conditioner.embedders.0.": clip, "conditioner.embedders.1.model.": _open_clip(second)}
    else:
        renamed["cond_stage_model."] = clip
    state = {prefix + name: tensor.contiguous() for prefix, part in renamed.items() for name, tensor in part.items()}
    save_file(state, target, {"format": "pt"})


def _unet_name(name: str, layers: int) -> str:
    for pattern, ours in UNET:
        name = re.sub(pattern, ours, name)
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = (layers + 1) * block
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.2.{rest}"
        place = f"input_blocks.{first + number + 1}" if side == "down" else f"output_blocks.{first + number}"
        name = f"{place}.{int(kind == 'attentions')}.{rest}"
        if kind == "attentions":
            return name
    if re.match(r"(input_blocks\.\d+\.0|output_blocks\.\d+\.0|middle_block\.[02])\.", name):
        for ours, theirs in RESNET:
            name = name.replace(ours, theirs)
    return name


def _open_clip(state: State) -> State:
    """Query, key and value are one matrix there, and the projection stands on its side."""
    found = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*)self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"{match[1]}attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj|position_ids", name):
            found[name] = tensor.T if name == "text_projection.weight" else tensor
    for pattern, theirs in OPEN_CLIP:
        found = {re.sub(pattern, theirs, name): tensor for name, tensor in found.items()}
    return found


def _vae_name(name: str, blocks: int) -> str:
    for pattern, ours in VAE:
        name = re.sub(pattern, ours, name)
    return re.sub(
        r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
        lambda found: f"up.{blocks - 1 - int(found[1])}.{'block' if found[2] == 'resnets' else 'upsample'}",
        name,
    )


def _vae_shape(name: str, tensor: Tensor) -> Tensor:
    """Attention as 1 x 1 convolutions."""
    linear = "attentions" in name and "group_norm" not in name and name.endswith("weight")
    return tensor[..., None, None] if linear else tensor
