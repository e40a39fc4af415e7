"""Group norms as ONNX Runtime's CPU provider computes them fast: the same numbers from other operators."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from dcdm_cli.backends import ort_graph
from dcdm_cli.backends.ort_graph import for_cpu

from .toys import write_graph

GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
norms (float[batch,4,side,side] x) => (float[batch,4,side,side] z)
<float[4] scale = {0.5, 1.0, 2.0, 3.0}, float[4] shift = {0.0, 1.0, -1.0, 5.0}>
{
  y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, scale, shift)
  w = Sigmoid (y)
  z = GroupNormalization <num_groups = 4> (w, scale, shift)
}
"""


def answer(model: Path | bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [4, 7])
def test_the_numbers_are_the_same(tmp_path: Path, batch: int, side: int) -> None:
    file = write_graph(tmp_path / "norms.onnx", GRAPH)
    before, changed = file.read_bytes(), for_cpu(file)
    assert isinstance(changed, bytes) and file.read_bytes() == before
    kinds = [node.op_type for node in onnx.load_from_string(changed).graph.node]
    assert kinds.count("InstanceNormalization") == 2 and "GroupNormalization" not in kinds
    x = np.random.default_rng(0).normal(3, 2, (batch, 4, side, side)).astype(np.float32)
    assert np.allclose(answer(changed, x), answer(file, x), atol=1e-5)


def test_norms_of_sequences_are_too(tmp_path: Path) -> None:
    """As in the attention of a VAE: channels, and one dimension behind them."""
    file = write_graph(tmp_path / "norms.onnx", GRAPH.replace("4,side,side", "4,length"))
    changed = for_cpu(file)
    assert isinstance(changed, bytes)
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 9)).astype(np.float32)
    assert np.allclose(answer(changed, x), answer(file, x), atol=1e-5)


def test_a_model_that_gains_nothing_stays_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_graph(tmp_path / "norms.onnx", GRAPH)
    apart = tmp_path / "apart.onnx"
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2048, np.float32), "unused"))
    onnx.save(model, apart, save_as_external_data=True, location="apart.data", size_threshold=1024)
    none = write_graph(tmp_path / "none.onnx", re.sub(r"GroupNormalization <.*> \((.), .*\)", r"Tanh (\1)", GRAPH))
    assert for_cpu(apart) == apart and for_cpu(none) == none
    monkeypatch.setattr(ort_graph, "LARGEST", 100)
    assert for_cpu(file) == file


def test_weights_that_are_computed_stay_with_their_norm(tmp_path: Path) -> None:
    text = GRAPH.replace("w = Sigmoid (y)", "w = Sigmoid (y)\n  twice = Add (scale, scale)")
    file = write_graph(tmp_path / "norms.onnx", text.replace("(w, scale, shift)", "(w, twice, shift)"))
    assert for_cpu(file) == file
