"""Our graphs go through a real NVIDIA parser and builder, with the code that TensorRT proper will run.

TensorRT-RTX is the same code family; it builds ahead of time without a GPU. What is built here is never run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from torch import Tensor, nn

from dcdm_cli.model.base import DTYPES
from dcdm_cli.model.conditioning import EncoderConfig, join_tokens
from dcdm_cli.model.encoder import DifficultyEncoder
from dcdm_cli.run.store import RunFolder
from dcdm_export.engine_key import EngineError, EngineSettings, Gpu, check_engine, profile_shapes, read_key
from dcdm_export.folder import make_export
from dcdm_export.fp8 import export_fp8
from dcdm_export.onnx_graph import OPSETS, Graph, export_graph
from dcdm_export.orders import EngineOrder
from dcdm_export.signature import NETWORKS, NetworkFile, Precision, read_signature
from dcdm_export.trt_engine import build_engine, make_attention_decomposable

from .tensorrt_rtx import for_ampere
from .test_folder import Stop, order, request

pytestmark = pytest.mark.tensorrt_rtx
QUICK = EngineSettings(optimization_level=1)


def build(rtx: ModuleType, folder: Path, network: NetworkFile, batch: int, **changes: Any) -> bytes:
    settings = dataclasses.replace(QUICK, **changes)
    shapes = profile_shapes(network, batch, settings.fixed)
    return build_engine(rtx, folder / network.file, shapes, settings, tune=for_ampere(rtx))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_exported_graph_builds(rtx: ModuleType, exported: tuple[RunFolder, str], name: str) -> None:
    folder = exported[0].export
    network = read_signature(folder).networks[name]
    plan = build(rtx, folder, network, 8)
    assert len(plan) > 0.9 * (folder / network.file).stat().st_size - 2**20


@pytest.mark.parametrize("fixed", [True, False])
def test_half_precision_builds_to_a_smaller_engine(
    rtx: ModuleType, exported: tuple[RunFolder, str], exported_fp16: tuple[RunFolder, Any], fixed: bool
) -> None:
    sizes = []
    for run in (exported[0], exported_fp16[0]):
        network = read_signature(run.export).networks["denoiser"]
        sizes.append(len(build(rtx, run.export, network, 4, fixed=fixed)))
    assert sizes[1] < sizes[0]


class WideBlocks(nn.Module):
    """Stable Diffusion 1.5's blocks at its widths, and so with heads of 40, 80 and 160 values; one layer per block."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = DifficultyEncoder(EncoderConfig(classes=5, dim=768))
        self.first, self.time = nn.Conv2d(4, 320, 3, padding=1), nn.Linear(1, 1280)
        self.blocks = nn.ModuleList(
            CrossAttnDownBlock2D(
                in_channels=before,
                out_channels=width,
                temb_channels=1280,
                num_layers=1,
                num_attention_heads=8,
                cross_attention_dim=768,
            )
            for before, width in ((320, 320), (320, 640), (640, 1280))
        )
        for part in (self.first, self.time, self.blocks):
            part.to(dtype)
        self.dtype = dtype
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        joined = join_tokens(text.to(self.dtype), self.encoder(label, difficulty), "append")
        hidden, time = self.first(latents.to(self.dtype)), self.time(timestep[:, None].to(self.dtype) / 1000)
        for block in self.blocks:
            hidden, _ = block(hidden, time, encoder_hidden_states=joined)
        return hidden.float()


def wide_graph(precision: Precision, opset: int) -> Graph:
    inputs = {
        "latents": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([1.0, 999.0]),
        "text": torch.randn(2, 77, 768),
        "label": torch.tensor([0, 4]),
        "difficulty": torch.tensor([-1.0, 0.5]),
    }
    return Graph("denoiser", WideBlocks(DTYPES[precision]), inputs, "prediction", precision, opset)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), [("fp32", 21), ("fp16", 21), ("bf16", 22), ("fp16", 23)])
def test_heads_of_stable_diffusion_build(rtx: ModuleType, tmp_path: Path, precision: Precision, opset: int) -> None:
    network = export_graph(wide_graph(precision, opset), tmp_path)
    assert len(build(rtx, tmp_path, network, 2)) > 2**20


@pytest.mark.slow
def test_a_graph_in_eight_bits_builds(rtx: ModuleType, tmp_path: Path) -> None:
    graph = wide_graph("fp8", 21)
    calls = [{name: tensor.numpy() for name, tensor in graph.inputs.items()}]
    network = export_fp8(graph, calls, tmp_path)
    assert len(build(rtx, tmp_path, network, 2)) > 2**20


class Attention(nn.Module):
    """Heads of 8 values in float32: for a range of batches TensorRT has no kernel and must take the operator apart."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        heads = [f(latents).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.query, self.key, self.value)]
        return nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def test_attention_without_a_kernel_is_taken_apart(
    rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph("attention", Attention().eval(), {"latents": torch.randn(2, 64, 16)}, "out", opset=23)
    network = export_graph(graph, tmp_path)
    assert [node.op_type for node in onnx.load(tmp_path / network.file).graph.node].count("Attention") == 1
    assert build(rtx, tmp_path, network, 4, fixed=False)
    monkeypatch.setattr("dcdm_export.trt_engine.make_attention_decomposable", lambda *_: 0)
    with pytest.raises(EngineError, match=r"cannot build .*attention.onnx: .*Attention operation was not supported"):
        build(rtx, tmp_path, network, 4, fixed=False)


def test_graphs_without_attention_are_left_alone(rtx: ModuleType, exported: tuple[RunFolder, str]) -> None:
    log = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(log).create_network(0)
    parser = rtx.OnnxParser(network, log)
    assert parser.parse_from_file(str(exported[0].export / "denoiser.onnx"))
    assert make_attention_decomposable(rtx, network) == 0 and network.num_layers > 1000


def engines(rtx: ModuleType, *batches: int, **changes: Any) -> EngineOrder:
    gpu = Gpu("none, built for", "8.0")
    order = EngineOrder(rtx, gpu, {"denoiser": batches}, QUICK, tune=for_ampere(rtx))
    return dataclasses.replace(order, **changes)


def test_the_folder_gets_engines_and_keeps_them(rtx: ModuleType, tmp_path: Path) -> None:
    requests, target, work = [request("denoiser")], tmp_path / "export", tmp_path / "work"
    told: list[tuple[str, int, int]] = []
    signature = make_export(order(told, requests=requests, engines=engines(rtx, 1, 4)), target, work)
    assert [(e.file, e.batch) for e in signature.engines] == [("denoiser.b1.engine", 1), ("denoiser.b4.engine", 4)]
    steps = [(done, total) for what, done, total in told if what == "building engine of denoiser for batch 4"]
    assert steps and all(0 <= done <= total for done, total in steps)
    for engine in signature.engines:
        key = read_key(target, engine)
        assert key is not None and key.tensorrt == rtx.__version__ and key.graph == signature.networks["denoiser"].hash
        assert key.shapes["latents"][0] == (engine.batch, 4, 4, 4)
        check_engine(target, engine, tensorrt=rtx.__version__, gpu=key.gpu, graph=key.graph)
    again: list[tuple[str, int, int]] = []
    for wanted in (engines(rtx, 4), None):
        kept = make_export(order(again, requests=requests, engines=wanted), target, work)
        assert {engine.file for engine in kept.engines} == {"denoiser.b1.engine", "denoiser.b4.engine"}
    assert again == []
    other = engines(rtx, 4, gpu=Gpu("another", "8.0"))
    rebuilt = make_export(order(again, requests=requests, engines=other), target, work)
    assert [engine.file for engine in rebuilt.engines] == ["denoiser.b4.engine"]
    assert {what for what, _, _ in again} == {"building engine of denoiser for batch 4"}


def test_an_engine_that_was_changed_is_built_again(rtx: ModuleType, tmp_path: Path) -> None:
    requests, target, work = [request("denoiser")], tmp_path / "export", tmp_path / "work"
    make_export(order(requests=requests, engines=engines(rtx, 2)), target, work)
    file = target / "denoiser.b2.engine"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    notes = ["start"]
    signature = make_export(order(notes=notes, requests=requests, engines=engines(rtx, 2)), target, work)
    assert "its content has changed; it is built again" in notes[1]
    key = read_key(target, signature.engines[0])
    assert key is not None
    check_engine(target, signature.engines[0], tensorrt=key.tensorrt, gpu=key.gpu, graph=key.graph)


def test_a_build_can_be_stopped(rtx: ModuleType, exported: tuple[RunFolder, str]) -> None:
    network = read_signature(exported[0].export).networks["vae_decoder"]
    told: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        told.append(what)
        raise Stop

    shapes = profile_shapes(network, 2, fixed=True)
    with pytest.raises(Stop):
        build_engine(rtx, exported[0].export / network.file, shapes, QUICK, progress=stop, tune=for_ampere(rtx))
    assert told == ["building engine"]


def test_what_tensorrt_refuses_is_said_in_its_words(rtx: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot parse .*bad.onnx: .*Failed to parse the ONNX model"):
        build_engine(rtx, tmp_path / "bad.onnx", {}, QUICK)


def test_shapes_that_do_not_fit_are_refused(rtx: ModuleType, exported: tuple[RunFolder, str]) -> None:
    folder = exported[0].export
    network = read_signature(folder).networks["vae_decoder"]
    with pytest.raises(EngineError):
        build_engine(rtx, folder / network.file, {"latents": ((8, 4, 8, 8), (4, 4, 8, 8), (2, 4, 8, 8))}, QUICK)


def test_every_precision_has_an_opset() -> None:
    assert set(OPSETS) == {"fp32", "fp16", "bf16", "fp8"}
