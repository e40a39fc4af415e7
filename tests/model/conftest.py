"""The embedded base model, read only, and copies of its UNet to change."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from diffusers import UNet2DConditionModel

from dcdm_cli.model.base import BaseModel, load_base
from dcdm_cli.model.lora import add_lora, lora_parameters
from dcdm_cli.model.packaged import TINY_NAME

ALL_KINDS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "proj_in", "ff.net.0.proj")
Predict = Callable[[UNet2DConditionModel], torch.Tensor]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> BaseModel:
    return load_base(TINY_NAME)


@pytest.fixture
def unet(tiny: BaseModel) -> UNet2DConditionModel:
    return copy.deepcopy(tiny.unet)


@pytest.fixture
def trained(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A LoRA on attention, convolutions and feed-forward layers, alpha not rank, moved away from zero."""
    return with_lora(unet, ALL_KINDS, alpha=6, size=0.05)


def with_lora(unet: UNet2DConditionModel, targets: Sequence[str], *, alpha: int, size: float) -> UNet2DConditionModel:
    """A LoRA of rank 4 whose values are `size` on average, so that none of it acts like nothing."""
    add_lora(unet, 4, alpha, targets)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return unet


@pytest.fixture(scope="session")
def predict() -> Predict:
    """The UNet's output [2, 4, 8, 8] for fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 17, 64, generator=generator)

    def run(unet: UNet2DConditionModel) -> torch.Tensor:
        with torch.no_grad():
            return unet(latents, torch.tensor([20, 700]), encoder_hidden_states=text, return_dict=False)[0]

    return run


@pytest.fixture
def library_log() -> Iterator[list[str]]:
    """What diffusers, transformers and peft log, from INFO up to what a terminal would show: WARNING and above."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft", "accelerate")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)
