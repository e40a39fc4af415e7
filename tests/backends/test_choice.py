"""One place decides on the backend: what `auto` takes, what it passes over, and what an explicit request runs into."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dcdm_cli.backends.choice import BackendChoice, Wanted, choose_backend
from dcdm_cli.errors import CapabilityError, DcdmError, MismatchError, NotFoundError, UsageError
from dcdm_cli.model.adapter import AdapterInfo, adapter_hash
from dcdm_cli.model.conditioning import EncoderConfig
from dcdm_cli.run.settings import GenerateConfig
from dcdm_export.signature import (
    DENOISER,
    VAE_DECODER,
    ModelFacts,
    NetworkFile,
    Signature,
    TensorSpec,
    digest,
    read_signature,
    write_signature,
)

from .toys import DECODER, toy_denoiser, toy_inputs, toy_prediction, write_graph

NAMES = ("cat", "dog")
INFO = AdapterInfo("base", "fingerprint", None, NAMES, 32, EncoderConfig(classes=2, dim=5), {})
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="extra not installed")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"weight": torch.ones(2)}, folder / "pytorch_lora_weights.safetensors")
    return folder


@pytest.fixture
def export(adapter: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    denoiser, file = toy_denoiser(folder), write_graph(folder / "decoder.onnx", DECODER)
    decoder = NetworkFile(
        file.name, {file.name: digest(file)},
        (TensorSpec("latents", "float32", ("batch", 4, 8, 8)),),
        (TensorSpec("images", "float32", ("batch", 3, 32, 32)),), 21, "fp32",
    )  # fmt: skip
    facts = ModelFacts(
        class_names=NAMES, resolution=32, latent_shape=(2, 4, 4), text_shape=(3, 5), scaling_factor=1.0,
        shift_factor=0.0, prediction_type="epsilon", mode="append", tokens=1, base_fingerprint="fingerprint",
        adapter_hash=adapter_hash(adapter), lora_scale=1.0,
    )  # fmt: skip
    write_signature(folder, Signature(facts, {DENOISER: denoiser, VAE_DECODER: decoder}, "0", {}))
    return folder


def choose(
    adapter: Path, export: Path | None, device: str = "cpu", calls: Any = (3,), **settings: Any
) -> BackendChoice:
    return choose_backend(
        Wanted(adapter, INFO, GenerateConfig.model_validate(settings), device, export, frozenset(calls))
    )


def change(export: Path, **facts: Any) -> None:
    signature = read_signature(export)
    write_signature(export, dataclasses.replace(signature, model=dataclasses.replace(signature.model, **facts)))


def change_denoiser(export: Path, **facts: Any) -> None:
    signature = read_signature(export)
    denoiser = dataclasses.replace(signature.networks[DENOISER], **facts)
    write_signature(export, dataclasses.replace(signature, networks={**signature.networks, DENOISER: denoiser}))


@needs_openvino
def test_auto_on_a_cpu_takes_openvino(adapter: Path, export: Path) -> None:
    choice = choose(adapter, export)
    assert choice.opened is not None and choice.opened.denoiser.name == "openvino"
    assert choice.reason == "the fastest on a CPU"


def test_auto_without_openvino_takes_onnxruntime(adapter: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    choice = choose(adapter, export)
    assert choice.opened is not None and choice.opened.denoiser.name == "onnxruntime"
    assert choice.reason == "not openvino: openvino is not installed; faster than torch on a CPU"


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_what_was_asked_for_runs_denoiser_and_decoder(name: str, adapter: Path, export: Path) -> None:
    opened = choose(adapter, export, backend=name).opened
    assert opened is not None and opened.denoiser.name == name and opened.decode is not None
    inputs = toy_inputs(6)
    assert torch.allclose(opened.denoiser(*inputs), toy_prediction(*inputs), atol=1e-4, rtol=1e-5)
    latents = torch.randn(5, 4, 8, 8)
    expected = latents[:, :3].tanh().repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(opened.decode(latents), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_torch_decodes_where_an_older_export_has_no_decoder(name: str, adapter: Path, export: Path) -> None:
    signature = read_signature(export)
    write_signature(export, dataclasses.replace(signature, networks={DENOISER: signature.networks[DENOISER]}))
    (export / "decoder.onnx").unlink()
    choice = choose(adapter, export, backend=name)
    assert choice.opened is not None and choice.opened.denoiser.name == name and choice.opened.decode is None
    assert choice.reason == "asked for; torch decodes, as the export holds no decoder"


@pytest.mark.parametrize(("wanted", "exported"), [("auto", True), ("fp16", True), ("fp32", False), ("bf16", False)])
def test_a_decoder_of_another_precision_than_set_is_left_alone(
    wanted: str, exported: bool, adapter: Path, export: Path
) -> None:
    signature = read_signature(export)
    decoder = dataclasses.replace(signature.networks[VAE_DECODER], precision="fp16")
    write_signature(export, dataclasses.replace(signature, networks={**signature.networks, VAE_DECODER: decoder}))
    choice = choose(adapter, export, backend="onnxruntime", vae_precision=wanted)
    assert choice.opened is not None and (choice.opened.decode is not None) == exported
    assert choice.opened.half_decoder == exported
    said = "" if exported else f"; torch decodes in {wanted}, as the export's decoder is in fp16"
    assert choice.reason == f"asked for{said}"


def test_a_tampered_decoder_is_never_loaded(adapter: Path, export: Path) -> None:
    file = export / "decoder.onnx"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(MismatchError, match=r"decoder\.onnx is not the file that was exported"):
        choose(adapter, export, backend="onnxruntime")


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_without_an_export_auto_takes_torch_and_says_why(folder: str, adapter: Path, tmp_path: Path) -> None:
    export = None if folder == "none" else tmp_path
    choice = choose(adapter, export)
    assert choice.opened is None and "xport" in choice.reason
    with pytest.raises(NotFoundError) as caught:
        choose(adapter, export, backend="onnxruntime")
    assert "dcdm export" in caught.value.hint


STALE = {
    "adapter": ({"adapter_hash": "another"}, "another adapter"),
    "lora_scale": ({"lora_scale": 0.5}, "lora_scale"),
    "base": ({"base_fingerprint": "another"}, "another base model"),
    "classes": ({"class_names": ("dog", "cat")}, "another class names"),
    "mode": ({"mode": "replace"}, "another token mode"),
    "plain": ({"mode": None, "tokens": 0}, "another token mode"),
    "tokens": ({"tokens": 4}, "another number of difficulty tokens"),
    "resolution": ({"resolution": 64}, "another resolution"),
}


@pytest.mark.parametrize(("facts", "words"), STALE.values(), ids=STALE)
def test_a_stale_export_is_passed_over_by_auto_and_refused_on_request(
    facts: dict[str, Any], words: str, adapter: Path, export: Path
) -> None:
    change(export, **facts)
    choice = choose(adapter, export)
    assert choice.opened is None and words in choice.reason
    with pytest.raises(MismatchError, match=words) as caught:
        choose(adapter, export, backend="onnxruntime")
    assert "dcdm export" in caught.value.hint


def test_another_precision_than_the_exports_is_refused(adapter: Path, export: Path) -> None:
    assert choose(adapter, export, precision="fp16").opened is None
    with pytest.raises(MismatchError, match="exported in fp32, and generation is set to fp16") as caught:
        choose(adapter, export, backend="onnxruntime", precision="fp16")
    assert "--precision fp32" in caught.value.hint


@pytest.mark.parametrize(("calls", "fits"), [((3,), True), ((2,), False), ((3, 1), False)])
def test_a_shared_prefix_serves_exactly_its_calls(
    calls: tuple[int, ...], fits: bool, adapter: Path, export: Path
) -> None:
    change_denoiser(export, shared_calls=3)
    choice = choose(adapter, export, calls=calls)
    assert (choice.opened is not None) == fits
    if choice.opened is not None:
        assert choice.opened.denoiser.shared_calls == 3
    else:
        assert "3 network calls per step" in choice.reason


def test_a_tampered_graph_is_never_loaded(adapter: Path, export: Path) -> None:
    file = export / "denoiser.onnx"
    file.write_bytes(file.read_bytes() + b" ")
    assert choose(adapter, export).opened is None
    with pytest.raises(MismatchError, match="is not the file that was exported"):
        choose(adapter, export, backend="onnxruntime")


@pytest.mark.parametrize(
    ("settings", "device", "error"),
    [
        ({"backend": "openvino"}, "cuda", CapabilityError),
        ({"backend": "onnxruntime"}, "mps", CapabilityError),
        ({"backend": "onnxruntime", "compile": True}, "cpu", UsageError),
    ],
)
def test_impossible_requests_are_errors(
    settings: dict[str, Any], device: str, error: type[DcdmError], adapter: Path, export: Path
) -> None:
    with pytest.raises(error) as caught:
        choose(adapter, export, device, **settings)
    assert caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_without_its_gpu_is_passed_over_by_auto_and_refused_on_request(adapter: Path, export: Path) -> None:
    choice = choose(adapter, export, "cuda")
    assert choice.opened is None and choice.reason.startswith("not tensorrt: ")
    with pytest.raises(CapabilityError) as caught:
        choose(adapter, export, "cuda", backend="tensorrt")
    assert caught.value.hint
    with pytest.raises(CapabilityError, match="does not run on cpu"):
        choose(adapter, export, "cpu", backend="tensorrt")


def test_torch_and_compile_need_no_export(adapter: Path, export: Path) -> None:
    assert choose(adapter, export, backend="torch") == BackendChoice(None, "asked for")
    assert choose(adapter, export, compile=True) == BackendChoice(None, "--compile is for torch")
    assert choose(adapter, export, device="mps").opened is None
