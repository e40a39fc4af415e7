"""Eight bits: what ModelOpt makes of a graph has its edges and about its values (images judge it: tests/evaluating)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from dcdm_cli.errors import CapabilityError
from dcdm_cli.stages import fp8
from dcdm_export.fp8 import PARTS, export_fp8
from dcdm_export.onnx_graph import ExportError, Graph, check_graph, check_opset, default_opset
from dcdm_export.parity import Case, ParityError, compare, expected_outputs

from .toys import toy_inputs


class Wide(nn.Module):
    """With products wide enough for 8 bits, and the inputs of `toy_inputs`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(), nn.Linear(512, 32)
        )
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return self.layers(latents) * (1 + timestep[:, None] / 1000)


GRAPH = Graph("toy", Wide(), toy_inputs(), "prediction", "fp8", key="k", metadata={"dcdm.network": "toy"})


def calls(*batches: int) -> list[dict[str, np.ndarray]]:
    return [{name: tensor.numpy() for name, tensor in toy_inputs(batch).items()} for batch in batches]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fp8")
    export_fp8(GRAPH, calls(4, 4), made)
    return made


def test_products_are_quantised_and_the_edges_stay(folder: Path) -> None:
    network = export_fp8(GRAPH, calls(4), folder.parent / "again")
    assert (network.precision, network.opset, network.key) == ("fp8", 21, "k")
    assert [spec.shape for spec in network.inputs] == [("batch", 4, 4, 4), ("batch",)]
    assert [spec.dtype for spec in (*network.inputs, *network.outputs)] == ["float32"] * 3
    assert sorted(file.name for file in (folder.parent / "again").iterdir()) == ["toy.onnx"]
    model = onnx.load(folder / "toy.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") >= 2 and "Conv" in kinds
    eight = onnx.TensorProto.FLOAT8E4M3FN
    assert any(tensor.data_type == eight for tensor in model.graph.initializer)
    assert {entry.key: entry.value for entry in model.metadata_props}["dcdm.network"] == "toy"


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_runs_for_any_batch_within_tolerance_and_not_exactly(folder: Path, batch: int) -> None:
    cases = [Case(f"batch {batch}", toy_inputs(batch))]
    parity = compare("toy", folder, check_graph(folder, GRAPH), cases, expected_outputs(Wide(), cases))
    assert parity.status == "passed" and parity.tolerance == 0.1
    assert parity.cases[0].relative is not None and parity.cases[0].relative > 1e-4  # it is rounded indeed


def test_another_network_does_not_pass(folder: Path) -> None:
    cases = [Case("batch 3", toy_inputs(3))]
    wrong = [-2 * values for values in expected_outputs(Wide(), cases)]
    with pytest.raises(ParityError, match=r"toy in fp8 differs from PyTorch by"):
        compare("toy", folder, check_graph(folder, GRAPH), cases, wrong)


def test_calls_have_one_shape(tmp_path: Path) -> None:
    for several in (calls(2, 4), []):
        with pytest.raises(ExportError, match="calls of one shape"):
            export_fp8(GRAPH, several, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_quantiser_cannot_do_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    wrong = [{name: array[:, :2] if array.ndim > 1 else array for name, array in calls(4)[0].items()}]
    with pytest.raises(ExportError, match=r"ModelOpt cannot quantise toy: \S"):
        export_fp8(GRAPH, wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_opset_keeps_attention_apart() -> None:
    assert default_opset("fp8", gpu=True) == 21
    for opset in (20, 23):
        with pytest.raises(ExportError, match=f"opset {opset} does not serve fp8: use 21 to 22"):
            check_opset("fp8", opset)


def test_without_modelopt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcdm_export.fp8.PARTS", (*PARTS, "no_such_module"))
    with pytest.raises(CapabilityError, match="needs ModelOpt, and there is no no_such_module") as caught:
        fp8.check_quantizer()
    assert caught.value.hint == "pip install 'dcdm-cli[fp8]'"
