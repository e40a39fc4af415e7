"""Few-step LoRAs and their samplers: fused beside the adapter, hashed into the generator, refused where they break."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, LCMScheduler, TCDScheduler

from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.generation.engine import Engine, open_engine, sampler_settings
from dcdm_cli.generation.guidance import Guidance
from dcdm_cli.generation.sampler import Conditioning, sample
from dcdm_cli.model.base import load_base
from dcdm_cli.model.export_folder import open_export
from dcdm_cli.model.few_steps import MOST_GUIDANCE, check_few_steps, parse_extra_lora
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.kohya import KOHYA_FILE, save_kohya
from dcdm_cli.model.lora import LORA_FILE, inject_lora
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.model.schedule import noise_of, noise_streams, sampling_scheduler

from .conftest import config
from .test_engine import Elementwise, images, with_denoiser

UNGUIDED = {"text_guidance": 1.0, "difficulty_guidance": 1.0}


@pytest.mark.parametrize("name", ["lcm", "tcd", "euler"])
def test_an_image_does_not_depend_on_its_batch(name: str, engine: Engine) -> None:
    """LCM and TCD draw noise at every step: each image has its own stream."""
    few = dataclasses.replace(engine, config=config(scheduler=name, **UNGUIDED))
    together = images(with_denoiser(few, Elementwise()), 7)
    assert together.std() > 1
    for batch in (1, 3):
        assert (images(with_denoiser(few, Elementwise()), batch) == together).all()


@pytest.mark.parametrize(
    ("name", "theirs"), [("lcm", LCMScheduler), ("tcd", TCDScheduler), ("euler", EulerDiscreteScheduler)]
)
def test_the_loop_is_diffusers(name: str, theirs: type) -> None:
    schedule = load_base(TINY_NAME).scheduler_config
    streams, conditioning = noise_streams([3]), told()
    noise = noise_of(streams, (4, 8, 8))
    drawn = None if name == "euler" else streams
    made = sample(
        Elementwise(), sampling_scheduler(name, schedule), noise,
        dataclasses.replace(conditioning, streams=drawn), Guidance(), steps=4,
    )  # fmt: skip
    plain = theirs.from_config({**schedule, "clip_sample": False, "timestep_spacing": "trailing"})
    plain.set_timesteps(4)
    stream = torch.Generator().manual_seed(3)
    latents = torch.randn((4, 8, 8), generator=stream)[None] * plain.init_noise_sigma
    for timestep in plain.timesteps:
        rows = plain.scale_model_input(latents, timestep)
        inputs = (timestep.float()[None], conditioning.text, conditioning.label, conditioning.difficulty)
        drawing = {} if name == "euler" else {"generator": [stream]}
        latents = plain.step(Elementwise()(rows, *inputs), timestep, latents, return_dict=False, **drawing)[0]
    assert torch.allclose(made, latents, atol=1e-5)


def told() -> Conditioning:
    text = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    return Conditioning(text, torch.ones(1, dtype=torch.int64), torch.full((1,), 0.5), torch.zeros_like(text))


@pytest.mark.parametrize("kohya", [False, True])
def test_it_is_fused_at_its_weight(kohya: bool, adapter: Path, tmp_path: Path) -> None:
    """The adapter's own LoRA as the further one: once and a half of it is the same weights."""
    file = adapter / LORA_FILE
    if kohya:
        file = write_kohya_of(adapter, tmp_path)
    both = load_fused(adapter, extra=parse_extra_lora(f"{file}:0.5")).network.state_dict()
    expected = load_fused(adapter, lora_scale=1.5).network.state_dict()
    assert all(torch.allclose(both[name], expected[name], atol=1e-5) for name in expected)


def write_kohya_of(adapter: Path, folder: Path) -> Path:
    base = load_base(TINY_NAME)
    inject_lora(base.unet, adapter)
    save_kohya(base.unet, folder, title="few steps", resolution=32, base=TINY_NAME)
    return folder / KOHYA_FILE


def test_the_generator_knows_what_it_does_not_where_it_lies(adapter: Path, tmp_path: Path) -> None:
    moved = tmp_path / "lcm" / LORA_FILE
    moved.parent.mkdir()
    shutil.copy(adapter / LORA_FILE, moved)
    kinds = {
        "none": None, "file": str(adapter / LORA_FILE), "folder": str(adapter), "moved": str(moved.parent),
        "weaker": f"{moved}:0.5",
    }  # fmt: skip
    settings = {name: config(scheduler="lcm", steps=2, extra_lora=text, **UNGUIDED) for name, text in kinds.items()}
    made = {name: open_engine(adapter, one, "cpu").generator for name, one in settings.items()}
    assert made["file"] == made["folder"] == made["moved"]
    assert len({made["file"], made["none"], made["weaker"]}) == 3
    calibrated = {name: sampler_settings(one).get("extra_lora") for name, one in settings.items()}
    assert calibrated["none"] is None and calibrated["file"] == calibrated["moved"] != calibrated["weaker"]


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        ({"scheduler": "ddim"}, "is no sampler of theirs", "--scheduler lcm | tcd | euler"),
        ({"scheduler": "lcm", "text_guidance": 3.0}, "generate.text_guidance = 3 is more .* bears: 2", "-guidance 2"),
        ({"scheduler": "lcm", "guidance_span": (8.0, 1.5)}, "guidance_span = 8 is more .* bears: 2", "span none"),
        ({"scheduler": "tcd", "difficulty_guidance": 2.0}, "difficulty_guidance = 2 .* bears: 1", "-guidance 1"),
        ({"scheduler": "euler", "text_guidance": 2.0}, "more than few-step sampling with euler", "--text-guidance 1"),
        ({"scheduler": "lcm", "guidance": "distilled"}, "two ways to few calls", "leave one of them out"),
        ({"scheduler": "lcm", "steps": 60}, "a schedule of 50 steps", "--steps 4"),
        ({"scheduler": "tcd", "strength": 0.5}, "starts from noise alone", "generate.strength at 1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes: dict, said: str, remedy: str, adapter: Path) -> None:
    asked = config(**{"extra_lora": str(adapter / LORA_FILE), **UNGUIDED, **changes})
    with pytest.raises(UsageError, match=said) as caught:
        open_engine(adapter, asked, "cpu")
    assert remedy in caught.value.hint


def test_without_a_further_lora_the_samplers_keep_their_bounds() -> None:
    check_few_steps(config(scheduler="euler", text_guidance=7.0))  # a solver like the others
    check_few_steps(config(scheduler="lcm", text_guidance=MOST_GUIDANCE["lcm"], difficulty_guidance=1.0))
    with pytest.raises(UsageError, match="few-step sampling with lcm"):
        check_few_steps(config(scheduler="lcm", text_guidance=7.0))


def test_files_that_are_none(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no file .*nowhere"):
        parse_extra_lora(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="above 0 and up to 2"):
        parse_extra_lora(f"{adapter}:5")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no tensors")
    with pytest.raises(MismatchError, match="does not fit this base model"):
        load_fused(adapter, extra=parse_extra_lora(str(wrong)))


@pytest.mark.slow
def test_an_export_without_it_is_not_used_with_it(exported: Path, adapter: Path) -> None:
    from dcdm_cli.model.adapter import adapter_hash

    open_export(exported, adapter_hash=adapter_hash(adapter), lora_scale=1.0, networks=())
    with pytest.raises(MismatchError, match=r"other settings of generate\.extra_lora"):
        open_export(exported, adapter_hash=adapter_hash(adapter), lora_scale=1.0, networks=(), extra_lora="0123:1")
