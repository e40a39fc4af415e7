"""A module becomes a checked graph that explains itself and runs on any batch."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcdm_export.onnx_graph import (
    OPSETS,
    ExportError,
    Graph,
    check_graph,
    check_opset,
    default_opset,
    export_graph,
    external_files,
    read_metadata,
)
from dcdm_export.parity import Case, compare, expected_outputs
from dcdm_export.signature import NetworkFile, TensorSpec, digest, verify_files

from .toys import Toy, toy_inputs

METADATA = {"dcdm.class_names": '["zero", "test tube"]', "dcdm.prediction_type": "epsilon"}


def toy_graph(**changes: Any) -> Graph:
    return dataclasses.replace(Graph("toy", Toy(), toy_inputs(), "prediction", key="k", metadata=METADATA), **changes)


def run(folder: Path, batch: int, shared_calls: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """What the graph and the module it came from give for the same inputs."""
    session = onnxruntime.InferenceSession(folder / "toy.onnx", providers=["CPUExecutionProvider"])
    inputs = toy_inputs(batch, shared_calls)
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return np.asarray(got), Toy(shared_calls=shared_calls)(*inputs.values()).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NetworkFile]:
    folder = tmp_path_factory.mktemp("toy")
    return folder, export_graph(toy_graph(), folder)


def test_the_graph_runs_like_the_module_at_any_batch(exported: tuple[Path, NetworkFile]) -> None:
    for batch in (1, 2, 5):
        got, expected = run(exported[0], batch)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_is_said_of_it_is_what_lies_there(exported: tuple[Path, NetworkFile]) -> None:
    folder, network = exported
    assert network.inputs == (
        TensorSpec("latents", "float32", ("batch", 4, 4, 4)),
        TensorSpec("timestep", "float32", ("batch",)),
    )
    assert network.outputs == (TensorSpec("prediction", "float32", ("batch", 4)),)
    assert (network.opset, network.precision, network.key) == (21, "fp32", "k")
    assert network.sha256 == {"toy.onnx": digest(folder / "toy.onnx")}
    assert [file.name for file in folder.iterdir()] == ["toy.onnx"]


def test_the_file_explains_itself_and_names_no_place(exported: tuple[Path, NetworkFile]) -> None:
    file = exported[0] / "toy.onnx"
    assert read_metadata(file) == METADATA
    assert not re.search(rb"site-packages|/home/|\.py\b", file.read_bytes())
    assert str(Path(__file__).parent).encode() not in file.read_bytes()


def test_the_same_module_gives_the_same_bytes(exported: tuple[Path, NetworkFile], tmp_path: Path) -> None:
    assert export_graph(toy_graph(), tmp_path).sha256 == exported[1].sha256


def test_weights_beside_the_graph_move_with_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    network = export_graph(toy_graph(), made, one_file_bytes=100)
    assert network.external_data == ("toy.onnx.data",) and set(network.sha256) == {"toy.onnx", "toy.onnx.data"}
    moved = made.rename(tmp_path / "moved")
    verify_files(moved, network.sha256)
    got, expected = run(moved, 5)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    (moved / "toy.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"keeps weights in 'toy.onnx.data', which is not a file beside it"):
        check_graph(moved, toy_graph())


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", "link"])
def test_weights_from_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    export_graph(toy_graph(), tmp_path / "made", one_file_bytes=100)
    os.link(tmp_path / "made" / "toy.onnx.data", tmp_path / "secret")
    (tmp_path / "made" / "link").symlink_to(tmp_path / "secret")
    model = onnx.load(tmp_path / "made" / "toy.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (tmp_path / "made" / "toy.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="which is not a file beside it"):
        external_files(tmp_path / "made" / "toy.onnx")


def test_rows_may_share_what_comes_first(tmp_path: Path) -> None:
    shared = toy_graph(module=Toy(shared_calls=3), inputs=toy_inputs(2, 3), shared_calls=3)
    network = export_graph(shared, tmp_path)
    assert network.shared_calls == 3 and network.inputs[0].shape == ("3*batch", 4, 4, 4)
    got, expected = run(tmp_path, 4, shared_calls=3)
    assert got.shape == (12, 4)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_stays_inside(tmp_path: Path, precision: Any, dtype: torch.dtype) -> None:
    half = toy_graph(module=Toy(dtype), precision=precision, opset=OPSETS[precision])
    network = export_graph(half, tmp_path)
    assert {spec.dtype for spec in (*network.inputs, *network.outputs)} == {"float32"}
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "toy.onnx").graph.initializer if len(tensor.dims) > 1}
    assert kinds == {{"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]}


@pytest.mark.parametrize(("precision", "opset"), [("fp32", 17), ("bf16", 21), ("fp16", 99)])
def test_opsets_that_cannot_serve_are_refused_at_once(precision: Any, opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} does not serve {precision}: use"):
        check_opset(precision, opset)
    with pytest.raises(ExportError, match=f"opset {opset}"):
        export_graph(toy_graph(precision=precision, opset=opset), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Module):
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return latents if float(timestep.sum()) > 3 else latents * 2


def test_a_module_that_cannot_be_traced_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "toy.onnx").write_bytes(b"the one before")
    with pytest.raises(ExportError, match="toy cannot be exported"):
        export_graph(toy_graph(module=Untraceable().eval()), tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("toy.onnx", b"the one before")]


def test_an_unsound_file_is_found_out(exported: tuple[Path, NetworkFile], tmp_path: Path) -> None:
    model = onnx.load(exported[0] / "toy.onnx")
    model.graph.node[0].op_type = "Cnov"
    (tmp_path / "toy.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="is not a sound ONNX file"):
        check_graph(tmp_path, toy_graph())
    with pytest.raises(ExportError, match="has inputs and outputs"):
        check_graph(exported[0], toy_graph(output="noise"))
    (tmp_path / "toy.onnx").write_bytes(b"\xff\xff not protobuf")
    with pytest.raises(ExportError, match="cannot be read as an ONNX file"):
        external_files(tmp_path / "toy.onnx")


class TwoHeads(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        heads = tokens.unflatten(2, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


def test_graphs_for_a_gpu_have_attention_as_one_operator(tmp_path: Path) -> None:
    assert default_opset("fp32", gpu=False) == 21 and default_opset("bf16", gpu=False) == 22
    opset = default_opset("fp16", gpu=True)
    assert opset == default_opset("bf16", gpu=True) == 23
    tokens = {"tokens": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))}
    network = export_graph(Graph("two_heads", TwoHeads().eval(), tokens, "mixed", opset=opset), tmp_path)
    assert "Attention" in {node.op_type for node in onnx.load(tmp_path / network.file).graph.node}
    cases = [Case("batch 2", tokens)]
    parity = compare("two_heads", tmp_path, network, cases, expected_outputs(TwoHeads(), cases))
    assert parity.status == "passed"


def test_an_older_onnxruntime_gets_no_operator_that_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.22.0")
    assert default_opset("fp16", gpu=True) == 21
