"""An exported graph as ONNX Runtime's CPU provider runs it fastest.

It has no kernel for GroupNormalization and makes some ten operators of each; for InstanceNormalization, which is the
same over groups, it has one. With OpenVINO it is the other way round, so the files stay as they are. Measured by
`benchmarks/bench_chunks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

LARGEST = 2**26  # bytes of a file; layers of larger networks take so long that norms beside them are nothing
EPSILON = 1e-5  # ONNX's own, where a node does not say


def for_cpu(file: Path) -> Path | bytes:
    """What a session is opened with: the model with other norms, or the file where nothing is to be gained. What it
    computes is the same but for rounding."""
    import onnx
    from onnx import numpy_helper
    from onnx.external_data_helper import uses_external_data

    if file.stat().st_size > LARGEST:
        return file
    model = onnx.load(file, load_external_data=False)
    tensors = model.graph.initializer
    known = {one.name: one for one in tensors if one.data_type == onnx.TensorProto.FLOAT}
    norms = [node for node in model.graph.node if node.op_type == "GroupNormalization"]
    if not norms or any(map(uses_external_data, tensors)) or any(not known.keys() >= {*n.input[1:]} for n in norms):
        return file
    nodes = []
    for node in model.graph.node:
        if node.op_type != "GroupNormalization":
            nodes.append(node)
            continue
        name, (_, scale, shift) = f"norm of {node.output[0]}", node.input
        by_channel = [numpy_helper.to_array(known[each]).reshape(-1, 1) for each in (scale, shift)]
        tensors.extend(_constants(name, _attributes(node)["num_groups"], *by_channel))
        nodes += _instead(name, node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def _constants(name: str, groups: int, scale: np.ndarray, shift: np.ndarray) -> Iterator[onnx.TensorProto]:
    from onnx import numpy_helper

    values = {
        "ones": np.ones(groups, np.float32),
        "zeros": np.zeros(groups, np.float32),
        "groups": np.array([0, groups, -1], np.int64),  # 0: as it was
        "channels": np.array([0, len(scale), -1], np.int64),
        "scale": scale,
        "shift": shift,
    }
    return (numpy_helper.from_array(value, f"{name}, {key}") for key, value in values.items())


def _instead(name: str, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Normalised over groups, then scaled and shifted by channel, whatever the number of dimensions behind it."""
    from onnx import helper

    def made(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], **attributes)

    of, pixels = (lambda key: f"{name}, {key}"), node.input[0]
    yield made("Reshape", [pixels, of("groups")], of("grouped"))
    inputs = [of("grouped"), of("ones"), of("zeros")]
    yield made("InstanceNormalization", inputs, of("normal"), epsilon=_attributes(node)["epsilon"])
    yield made("Reshape", [of("normal"), of("channels")], of("by channel"))
    yield made("Mul", [of("by channel"), of("scale")], of("scaled"))
    yield made("Add", [of("scaled"), of("shift")], of("shifted"))
    yield made("Shape", [pixels], of("shape"))
    yield made("Reshape", [of("shifted"), of("shape")], node.output[0])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {"epsilon": EPSILON} | {one.name: helper.get_attribute_value(one) for one in node.attribute}
