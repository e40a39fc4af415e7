"""The adapter folder: written whole, read back, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.model.adapter import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    AdapterInfo,
    adapter_hash,
    read_adapter,
    save_adapter,
)
from dcdm_cli.model.conditioning import EncoderConfig
from dcdm_cli.model.encoder import DifficultyEncoder, load_encoder

ENCODER = EncoderConfig(classes=3, dim=64, tokens=2, hidden=8, label_embedding="learned", mode="replace")


def info(encoder: EncoderConfig | None = ENCODER) -> AdapterInfo:
    return AdapterInfo("some/base", "abc", "v1", ("a", "b", "ü"), 32, encoder, {"steps": 5})


@pytest.fixture
def folder(trained: UNet2DConditionModel, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save_adapter(tmp_path, trained, DifficultyEncoder(ENCODER), info())
    return tmp_path


def test_everything_comes_back(folder: Path) -> None:
    read = read_adapter(folder)
    assert read == info()
    torch.manual_seed(3)
    expected, loaded = DifficultyEncoder(ENCODER), load_encoder(folder, read)
    assert loaded is not None and not loaded.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_encoder_file_explains_itself(folder: Path) -> None:
    with safe_open(folder / ENCODER_FILE, "pt") as file:
        assert EncoderConfig(**json.loads(file.metadata()["config"])) == ENCODER
    assert "some/base" in (folder / "README.md").read_text()


def test_a_plain_lora_has_no_encoder(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained, None, info(None))
    assert not (tmp_path / ENCODER_FILE).exists()
    assert load_encoder(tmp_path, read_adapter(tmp_path)) is None


def test_the_hash_is_of_the_weights_alone(folder: Path) -> None:
    before = adapter_hash(folder)
    (folder / CALIBRATION_FILE).write_text("{}")
    assert adapter_hash(folder) == before
    torch.manual_seed(4)
    from safetensors.torch import save_file

    save_file(DifficultyEncoder(ENCODER).state_dict(), folder / ENCODER_FILE)
    assert adapter_hash(folder) != before


def test_an_empty_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no adapter in") as caught:
        read_adapter(tmp_path)
    assert "dcdm finetune" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "[]", '{"base": "x"}', '{"encoder": {"classes": 3, "dim": 4, "mode": "prepend"}, "class_names": []}']
)
def test_a_damaged_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(MismatchError, match=r"config\.json is damaged"):
        read_adapter(folder)


def test_weights_of_another_encoder_are_refused(folder: Path) -> None:
    from dataclasses import replace

    other = replace(read_adapter(folder), encoder=replace(ENCODER, classes=4))
    with pytest.raises(MismatchError, match="does not fit"):
        load_encoder(folder, other)
    (folder / ENCODER_FILE).unlink()
    with pytest.raises(MismatchError, match="does not fit"):
        load_encoder(folder, read_adapter(folder))
