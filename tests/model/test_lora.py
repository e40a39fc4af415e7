"""LoRA on every kind of layer: added, saved, loaded here and in plain diffusers."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.lora import LORA_FILE, add_lora, load_lora, lora_parameters, save_lora
from dcdm_cli.model.packaged import TINY_BASE

from .conftest import ALL_KINDS, Predict

PLAIN_DIFFUSERS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dcdm_cli", "dcdm_export"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
import json, torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None, requires_safety_checker=False)
pipeline.load_lora_weights(sys.argv[2])
generator = torch.Generator().manual_seed(0)
latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 17, 64, generator=generator)
with torch.no_grad():
    noise = pipeline.unet(latents, torch.tensor([700, 700]), encoder_hidden_states=text, return_dict=False)[0]
scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
scheduler.set_timesteps(30)
step = scheduler.step(noise, scheduler.timesteps[8], latents).prev_sample
try:
    import dcdm_cli
except ImportError:
    print(json.dumps({"noise": noise.flatten().tolist(), "latents": step.flatten().tolist()}))
"""


def test_only_the_lora_is_trainable_and_a_fresh_one_changes_nothing(
    tiny: BaseModel, unet: UNet2DConditionModel, predict: Predict
) -> None:
    add_lora(unet, 4, 8, ALL_KINDS)
    trainable = [name for name, p in unet.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    assert len(lora_parameters(unet)) == len(trainable)
    assert all(p.dtype == torch.float32 for p in lora_parameters(unet))
    assert torch.allclose(predict(unet), predict(tiny.unet), atol=1e-6)


def test_a_target_that_matches_nothing_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(UsageError, match="match no module") as caught:
        add_lora(unet, 4, 4, ["to_query"])
    assert "to_q" in caught.value.hint


def test_what_was_saved_is_what_is_loaded(
    tiny: BaseModel, trained: UNet2DConditionModel, predict: Predict, tmp_path: Path, library_log: list[str]
) -> None:
    save_lora(trained, tmp_path)
    fused = copy.deepcopy(tiny.unet)
    load_lora(fused, tmp_path)
    assert torch.allclose(predict(fused), predict(trained), atol=1e-4)
    assert (predict(fused) - predict(tiny.unet)).abs().max() > 1e-2
    assert not any("lora" in name for name, _ in fused.named_modules())
    assert library_log == []


def test_scale_zero_is_the_base(
    tiny: BaseModel, trained: UNet2DConditionModel, predict: Predict, tmp_path: Path
) -> None:
    save_lora(trained, tmp_path)
    fused = copy.deepcopy(tiny.unet)
    load_lora(fused, tmp_path, scale=0.0)
    assert torch.allclose(predict(fused), predict(tiny.unet), atol=1e-6)


def test_plain_diffusers_loads_every_layer_without_dcdm(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    """In an interpreter that cannot import dcdm; the noise and the latents after one step are the same."""
    save_lora(trained, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", PLAIN_DIFFUSERS, str(TINY_BASE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    theirs = {name: torch.tensor(values).view(2, 4, 8, 8) for name, values in json.loads(done.stdout).items()}
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 17, 64, generator=generator)
    with torch.no_grad():
        noise = trained(latents, torch.tensor([700, 700]), encoder_hidden_states=text, return_dict=False)[0]
    scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(TINY_BASE, subfolder="scheduler"))
    scheduler.set_timesteps(30)
    step = scheduler.step(noise, scheduler.timesteps[8], latents).prev_sample
    assert torch.allclose(theirs["noise"], noise, atol=1e-4)
    assert torch.allclose(theirs["latents"], step, atol=1e-4) and not torch.allclose(step, latents, atol=1e-2)


def test_a_missing_adapter_names_the_command(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=LORA_FILE) as caught:
        load_lora(unet, tmp_path)
    assert caught.value.hint == "make it first: dcdm finetune"


def test_a_damaged_adapter_is_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    (tmp_path / LORA_FILE).write_bytes(b"\x00" * 100)
    with pytest.raises(MismatchError, match="does not fit this base model"):
        load_lora(unet, tmp_path)


def test_an_adapter_of_another_unet_is_refused(tiny: BaseModel, trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_lora(trained, tmp_path)
    other = UNet2DConditionModel.from_config({**tiny.unet.config, "block_out_channels": (24, 48)})
    with pytest.raises(MismatchError, match="does not fit this base model"):
        load_lora(other, tmp_path)
