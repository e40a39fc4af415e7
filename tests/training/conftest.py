"""A tiny fine-tuning job: the embedded base, twelve digits, a few optimiser steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dcdm_cli.data.digits import digit_images
from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.run.progress import Job, silent
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.training.dataset import TrainingSet, cache_latents, encode_captions
from dcdm_cli.training.loop import Course, Trained, finetune
from dcdm_cli.training.views import Views

IMAGES, CLASSES = 12, 3
Train = Callable[..., Trained]


def settings(**changes: object) -> FinetuneConfig:
    small = {
        "steps": 6, "batch_size": 4, "rank": 2, "alpha": 2, "hidden": 8, "warmup_steps": 2, "resolution": 32,
        "lr": 1e-2, "encoder_lr": 1e-2, "lr_schedule": "cosine", "ema_decay": 0.9, "checkpoint_every": 100,
    }  # fmt: skip
    return FinetuneConfig.model_validate(small | changes)


@pytest.fixture(scope="session")
def tiny() -> BaseModel:
    return load_base(TINY_NAME)


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("digits")
    files = [folder / f"{i}.png" for i in range(IMAGES)]
    for image, file in zip(digit_images()[0], files, strict=False):
        Image.fromarray(image).save(file)
    return files


@pytest.fixture(scope="session")
def data(tiny: BaseModel, paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    latents = cache_latents(tiny, Views(paths), 32, tmp_path_factory.mktemp("cache"), silent)
    label = torch.arange(IMAGES) % CLASSES
    text, caption = encode_captions(tiny, [f"the number {y}" for y in label.tolist()], silent)
    return TrainingSet(latents, text, caption, label, torch.linspace(0, 1, IMAGES), torch.arange(IMAGES))


@pytest.fixture
def train(tiny: BaseModel, data: TrainingSet, tmp_path: Path) -> Train:
    """Fine-tunes a fresh copy of the base; checkpoints go to one folder per test."""

    def run(
        config: FinetuneConfig | None = None, job: Job | None = None, data: TrainingSet = data, *, replace: bool = False
    ) -> Trained:
        base, place = copy.deepcopy(tiny), tmp_path / "checkpoints"
        return finetune(base, data, CLASSES, config or settings(), place, job or Job(), Course(replace=replace))

    return run


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.network.named_parameters() if p.requires_grad}
