"""A real engine on the embedded base: an untrained LoRA and encoder are enough for everything but quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dcdm_cli.generation.engine import Engine, open_engine
from dcdm_cli.generation.plan import Plan, make_plan
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import load_base
from dcdm_cli.model.conditioning import EncoderConfig
from dcdm_cli.model.encoder import DifficultyEncoder
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.lora import add_lora, lora_parameters
from dcdm_cli.model.packaged import TINY_NAME
from dcdm_cli.run.settings import GenerateConfig
from dcdm_export.folder import make_export
from dcdm_export.orders import Order

from .fakes import CAPTIONS, NAMES, inputs

__all__ = ["CAPTIONS", "NAMES", "adapter", "config", "engine", "inputs", "make_adapter", "plan"]


def config(**changes: object) -> GenerateConfig:
    quick = {"steps": 3, "scheduler": "dpmpp", "clip_range": 4.0, "batch_size": 4, "decode_batch": 4}
    return GenerateConfig.model_validate(quick | changes)


def plan(counts: Sequence[int] = (3, 2, 2), generator: str = "g", seed: int = 0) -> Plan:
    return make_plan(inputs(), np.array(counts), parse_target("uniform:0,0.8"), seed, generator)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


def make_adapter(folder: Path) -> Path:
    """An untrained adapter of the embedded base."""
    base = load_base(TINY_NAME)
    torch.manual_seed(0)
    add_lora(base.unet, 2, 2, ["to_q", "to_v"])
    with torch.no_grad():
        for parameter in lora_parameters(base.unet):
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    encoder = DifficultyEncoder(EncoderConfig(classes=len(NAMES), dim=64, tokens=2, hidden=8))
    info = AdapterInfo(TINY_NAME, base.fingerprint, None, NAMES, 32, encoder.config, {})
    save_adapter(folder, base.unet, encoder, info)
    return folder


@pytest.fixture(scope="session")
def engine(adapter: Path) -> Engine:
    return open_engine(adapter, config(), "cpu")


@pytest.fixture(scope="session")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter's denoiser, for guided steps of three calls, and its decoder, as `dcdm export` writes them."""
    folder = tmp_path_factory.mktemp("exported")
    model = load_fused(adapter)
    facts = model_facts(model, adapter, 1.0)
    requests = export_requests(model, facts, "fp32", 21, {}, shared_calls=3)
    make_export(Order(facts, requests[:2], {}, "0"), folder / "export", folder / "work")
    return folder / "export"
