"""A network by its timm name: weights come from the hub, once, and are named when they do not come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save

from dcdm_cli.difficulty.features import open_extractor
from dcdm_cli.errors import NotFoundError
from dcdm_cli.run.network import SECONDS
from tests.hub import Hub, serving

NAME, REPOSITORY, FILE = "resnet10t", "timm/resnet10t.c3_in1k", "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving(monkeypatch) as opened:
        yield opened


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return timm.create_model(NAME).state_dict()


def test_published_weights_come_once_with_what_timm_says_of_them(hub: Hub, weights: dict[str, torch.Tensor]) -> None:
    hub.files[REPOSITORY] = {FILE: save(weights)}
    first = open_extractor(NAME)
    assert f"GET {REPOSITORY}/{FILE}" in hub.asked
    stem = first.network.penultimate.model.state_dict()["conv1.0.weight"]
    assert torch.equal(stem.cpu(), weights["conv1.0.weight"])
    assert first.preprocessing.data_config["mean"] == timm.create_model(NAME).pretrained_cfg["mean"]
    hub.asked.clear()
    assert open_extractor(NAME).key == first.key
    assert not any(line.startswith("GET") for line in hub.asked), "the second time they lie in the cache"


def test_a_hub_that_lacks_them_or_falls_silent_is_named(
    hub: Hub, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match=NAME) as missing:
        open_extractor(NAME)
    assert "name a folder that has them" in missing.value.hint
    hub.files[REPOSITORY] = {FILE: save(weights)}
    hub.silent = True
    monkeypatch.setenv(SECONDS, "2")
    clock = time.monotonic()
    with pytest.raises(NotFoundError, match=NAME) as silent:
        open_extractor(NAME)
    assert time.monotonic() - clock < 15
    assert f"{hub.place}: no answer within 2 s (network_seconds)" in silent.value.message
