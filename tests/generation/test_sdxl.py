"""Stable Diffusion XL's kind of base end to end, tiny and with random weights: two text encoders, of which one gives a
pooled embedding too, and a network that is told the images' size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UniPCMultistepScheduler
from PIL import Image

from dcdm_cli.generation.engine import decoder_precision, open_engine, render
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import BaseModel, encode_text, load_base
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.lora import add_lora
from dcdm_cli.model.schedule import SAMPLERS, noise_of, noise_streams
from dcdm_cli.run.progress import Job, silent
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.training.dataset import TrainingSet, encode_captions
from dcdm_cli.training.loop import Trained, finetune
from dcdm_export.folder import make_export
from dcdm_export.orders import Order

from ..xl import TOKENS, WIDTH, save_xl
from .conftest import config, plan
from .fakes import NAMES

SIZE = 32


def tune(base: BaseModel, checkpoints: Path, **changes: object) -> Trained:
    settings = FinetuneConfig.model_validate(
        {"steps": 2, "batch_size": 4, "rank": 2, "alpha": 2, "hidden": 8, "warmup_steps": 0, "resolution": SIZE}
        | {"ema_decay": 0.0, "gradient_checkpointing": True}
        | changes
    )
    count = 6
    text, caption = encode_captions(base, [f"a photo of a {NAMES[i % 3]}" for i in range(count)], silent)
    data = TrainingSet(
        latents=np.random.default_rng(0).standard_normal((count, 4, 8, 8)).astype(np.float32),
        text=text,
        caption=caption,
        label=torch.arange(count) % len(NAMES),
        difficulty=torch.linspace(0, 1, count),
        epoch=torch.arange(count),
    )
    return finetune(base, data, len(NAMES), settings, checkpoints, Job())


def keep(folder: Path, base: BaseModel, trained: Trained) -> Path:
    encoder = trained.network.encoder
    folder.mkdir()
    info = AdapterInfo(base.source, base.fingerprint, None, NAMES, SIZE, encoder.config if encoder else None, {})
    save_adapter(folder, trained.network.unet, encoder, info)
    return folder


def images(adapter: Path, export: Path | None = None, **changes: object) -> np.ndarray:
    engine = open_engine(adapter, config(**changes), "cpu", export=export)
    return np.concatenate([made for _, made in render(engine, plan().rows(), Job())])


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize(
    ("sampler", "zeros", "negative"),
    [("dpmpp", True, ""), ("ddim", False, ""), ("unipc", True, "a blurred photo")],
)
def test_without_difficulty_images_are_those_of_diffusers_pipeline(
    tmp_path: Path, sampler: str, zeros: bool, negative: str
) -> None:
    """The control with a LoRA that has learnt nothing yet is the base itself."""
    base = load_base(str(save_xl(tmp_path / "base", zeros=zeros)))
    add_lora(base.unet, 2, 2, ["to_q"])
    (tmp_path / "adapter").mkdir()
    info = AdapterInfo(base.source, base.fingerprint, None, NAMES, SIZE, None, {})
    save_adapter(tmp_path / "adapter", base.unet, None, info)
    asked = {"scheduler": sampler, "steps": 4, "text_guidance": 3.0, "clip_range": None, "negative_prompt": negative}
    ours = images(tmp_path / "adapter", **asked)
    assert ours.std() > 1

    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "base", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    kind = UniPCMultistepScheduler if sampler == "unipc" else SAMPLERS[sampler]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, clip_sample=False)
    rows = plan().rows()
    theirs = pipe(
        [row.caption for row in rows],
        negative_prompt=[negative] * len(rows) if negative else None,
        guidance_scale=3.0,
        num_inference_steps=4,
        height=SIZE,
        width=SIZE,
        latents=noise_of(noise_streams([row.seed for row in rows]), (4, 8, 8)),
    ).images
    assert differ(ours, np.stack([np.asarray(image) for image in theirs])) <= 1
    other = pipe([rows[0].caption], height=SIZE, width=SIZE, num_inference_steps=4, guidance_scale=3.0).images[0]
    assert isinstance(other, Image.Image) and differ(ours[0], np.asarray(other)) > 1, "noise matters"


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_one_optimiser_step_reaches_lora_and_encoder(tmp_path: Path, mode: str) -> None:
    base = load_base(str(save_xl(tmp_path / "base")))
    trained = tune(base, tmp_path / "checkpoints", steps=1, mode=mode)
    assert trained.skipped == 0 and np.isfinite(trained.losses[0][1])
    learnt = {name: p for name, p in trained.network.named_parameters() if p.requires_grad}
    moved = [name for name, p in learnt.items() if "lora_B" in name and p.any()]
    blocks = 2 * 1 + 2 * 2 + 2 + 3 * 2 + 3 * 1  # of transformers: down, middle and up
    assert len(moved) == 8 * blocks  # four projections in each of two attentions
    encoder = trained.network.encoder
    assert encoder is not None and encoder.config.dim == WIDTH
    adapter = keep(tmp_path / "adapter", base, trained)
    assert images(adapter).std() > 1
    facts = model_facts(load_fused(adapter), adapter, 1.0)
    assert facts.text_shape == (TOKENS + 1, WIDTH) and facts.mode == mode


@pytest.mark.slow
def test_tuned_exported_and_generated(tmp_path: Path) -> None:
    base = load_base(str(save_xl(tmp_path / "base")))
    adapter = keep(tmp_path / "adapter", base, tune(base, tmp_path / "checkpoints", encoder_lr=0.1))
    model = load_fused(adapter)
    facts = model_facts(model, adapter, 1.0)
    assert facts.text_shape == (TOKENS + 1, WIDTH) and facts.mode == "append"
    requests = export_requests(model, facts, "fp32", 21, {}, shared_calls=3)
    make_export(Order(facts, requests, {}, "0"), tmp_path / "export", tmp_path / "work")  # raises out of parity
    of_torch = images(adapter)
    assert of_torch.shape == (7, SIZE, SIZE, 3) and of_torch.std() > 1
    found = images(adapter, tmp_path / "export", backend="onnxruntime")
    assert differ(found, of_torch) <= 2 and (np.abs(found.astype(int) - of_torch) <= 1).mean() > 0.999
    text = _exported_text(tmp_path / "export", base)
    assert np.allclose(text, encode_text(base, ["two", ""]).numpy(), atol=1e-5) and not text[1].any()


def _exported_text(folder: Path, base: BaseModel) -> np.ndarray:
    import onnxruntime

    from dcdm_cli.model.base import tokenize

    session = onnxruntime.InferenceSession(folder / "text_encoder.onnx", providers=["CPUExecutionProvider"])
    (text,) = session.run(None, {"token_ids": tokenize(base, ["two", ""]).numpy()})
    return text


def test_its_decoder_is_never_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, precision in (((9, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        for asked in (config(precision="fp16"), config(precision="fp32", vae_precision="fp16")):
            assert decoder_precision(asked, "cuda", overflows=True) == precision
            assert decoder_precision(asked, "cuda") == "fp16"
        assert decoder_precision(config(precision="bf16"), "cuda", overflows=True) == "bf16"
    assert decoder_precision(config(precision="fp16"), "cpu", overflows=True) == "fp32"


def test_the_preset_is_of_its_resolution_and_of_one_image_at_once() -> None:
    preset = resolve(flags={"preset": "sdxl"}).config
    assert (preset.finetune.resolution, preset.finetune.base) == (1024, "stabilityai/stable-diffusion-xl-base-1.0")
    assert (preset.finetune.batch_size, preset.finetune.gradient_checkpointing) == (1, True)
    sd15 = resolve(flags={"preset": "sd15"}).config.finetune
    assert (preset.finetune.rank, preset.finetune.lora_targets) == (sd15.rank, sd15.lora_targets)
    assert preset.finetune.precision == preset.generate.precision == "auto"
