"""The file for ComfyUI and A1111: its keys are those of diffusers' converter, and it acts as the adapter does."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from dcdm_cli.model.kohya import KOHYA_FILE, save_kohya
from dcdm_cli.model.lora import ADAPTER_NAME, add_lora, lora_parameters

from .conftest import ALL_KINDS, Predict


def trained(unet: UNet2DConditionModel, targets: list[str] | tuple[str, ...]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    add_lora(unet, 4, 8, targets)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return unet


def test_keys_are_those_of_diffusers_converter(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    trained(unet, ("to_q", "to_k", "to_v", "to_out.0"))
    save_kohya(unet, tmp_path, title="birds", resolution=32, base="/data/sd15")
    state = get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME)
    theirs = convert_state_dict_to_kohya({f"unet.{name}": tensor for name, tensor in state.items()})
    ours = load_file(tmp_path / KOHYA_FILE)
    assert {key for key in ours if not key.endswith(".alpha")} == {key for key in theirs if not key.endswith(".alpha")}
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.endswith(".alpha"))
    assert all(float(tensor) == 8 for key, tensor in ours.items() if key.endswith(".alpha"))  # theirs takes the rank
    assert sum(key.endswith(".alpha") for key in ours) == len(state) // 2
    with safe_open(tmp_path / KOHYA_FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1" and metadata["modelspec.resolution"] == "32x32"
    assert metadata["modelspec.architecture"] == "custom/lora"  # the tiny base is no Stable Diffusion
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "8")
    assert metadata["ss_sd_model_name"] == "sd15", "no path of this machine"


def test_it_acts_as_the_adapter_does(unet: UNet2DConditionModel, predict: Predict, tmp_path: Path) -> None:
    fresh = copy.deepcopy(unet)
    before, wanted = predict(fresh), predict(trained(unet, ALL_KINDS))
    assert not torch.allclose(before, wanted, atol=1e-2)
    save_kohya(unet, tmp_path, title="birds", resolution=32, base="tiny")
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(tmp_path), weight_name=KOHYA_FILE)
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=fresh, adapter_name="kohya")
    assert torch.allclose(predict(fresh), wanted, atol=1e-5)
