"""One PyTorch module -> one ONNX graph that explains itself, checked where it finally lies.

Comes in: a module in its final precision with the names of its inputs and outputs. Goes out: `<name>.onnx`, with
`<name>.onnx.data` beside it when the weights are too large for one file, and the `NetworkFile` that describes both.
Opset 21 keeps attention as MatMul and Softmax and GroupNormalization whole, which ONNX Runtime and OpenVINO run fastest
on a CPU; bfloat16 convolutions need opset 22; opset 23 has Attention as one operator, which GPUs run fused. Graphs
in 8 bits are made of those in float32 (fp8.py).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import Tensor, nn
from torch.export import Dim

from dcdm_export.signature import BATCH_AXIS, NetworkFile, Precision, TensorSpec, digest
from dcdm_export.whole_files import whole_files

OPSETS: dict[Precision, int] = {"fp32": 21, "fp16": 21, "bf16": 22, "fp8": 21}
GPU_OPSET, GPU_ONNXRUNTIME = 23, (1, 24)  # and the first ONNX Runtime that runs its Attention on CUDA
LOWEST_OPSETS: dict[Precision, int] = {"fp32": 18, "fp16": 18, "bf16": 22, "fp8": 21}
HIGHEST_OPSET = 25  # what the exporter translates by itself
HIGHEST_FP8_OPSET = 22  # from 23 on attention is one operator, whose products are not quantised
ONE_FILE_BYTES = 1_900_000_000  # protobuf refuses messages of 2 GiB
TRACE_BATCH = 2  # a batch of one may be taken for a constant


class ExportError(RuntimeError):
    """The module cannot be exported with these settings, or what was written is not a sound ONNX file."""


@dataclass(frozen=True)
class Graph:
    """What to export. module: takes `inputs` by position, returns one tensor; in eval mode, in its final precision.

    inputs: example tensors by name, batch axis first and a multiple of `shared_calls`. metadata: put into the file.
    key: hash of what the graph is made from; kept in the signature, so that an unchanged network is not made again.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    output: str
    precision: Precision = "fp32"
    opset: int = OPSETS["fp32"]
    shared_calls: int = 1
    key: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def default_opset(precision: Precision, *, gpu: bool) -> int:
    """gpu: the graph is for one. The opset with fused attention, if the installed onnx and ONNX Runtime have it."""
    import onnxruntime

    runtime = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    known = onnx.defs.onnx_opset_version() >= GPU_OPSET and runtime >= GPU_ONNXRUNTIME
    return GPU_OPSET if gpu and known and precision != "fp8" else OPSETS[precision]


def check_opset(precision: Precision, opset: int) -> None:
    """Raises ExportError before anything slow starts."""
    lowest, highest = LOWEST_OPSETS[precision], HIGHEST_FP8_OPSET if precision == "fp8" else HIGHEST_OPSET
    if not lowest <= opset <= highest:
        raise ExportError(f"opset {opset} does not serve {precision}: use {lowest} to {highest}")


def export_graph(graph: Graph, folder: Path, *, one_file_bytes: int = ONE_FILE_BYTES) -> NetworkFile:
    """Writes the graph into `folder`, whole or not at all, and checks it there.

    one_file_bytes: weights beyond this go to `<name>.onnx.data`. Raises ExportError with the exporter's reason.
    """
    check_opset(graph.precision, graph.opset)
    file = f"{graph.name}.onnx"
    program = _trace(graph)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes source lines, with the paths of this machine
    program.model.metadata_props.update(graph.metadata)
    tensors = [*graph.module.parameters(), *graph.module.buffers()]
    external = sum(tensor.nbytes for tensor in tensors) > one_file_bytes
    with whole_files(folder, last=file) as part:
        program.save(part / file, external_data=external)
    return check_graph(folder, graph)


def check_graph(folder: Path, graph: Graph) -> NetworkFile:
    """The file as it lies in `folder`: read again, checked in full, its edges compared with what was asked for."""
    path = folder / f"{graph.name}.onnx"
    # first: the checker below follows whatever place the graph names
    external = external_files(path)
    try:
        # by its path: as a message it could not have 2 GiB
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path} is not a sound ONNX file: {error}") from error
    model = onnx.load(path, load_external_data=False)
    inputs, outputs = _specs(model.graph.input), _specs(model.graph.output)
    names = [spec.name for spec in (*inputs, *outputs)]
    if names != [*graph.inputs, graph.output]:
        raise ExportError(f"{path} has inputs and outputs {names}, not {[*graph.inputs, graph.output]}")
    return NetworkFile(
        file=path.name,
        sha256={name: digest(folder / name) for name in (path.name, *external)},
        inputs=inputs,
        outputs=outputs,
        opset=graph.opset,
        precision=graph.precision,
        external_data=external,
        shared_calls=graph.shared_calls,
        key=graph.key,
    )


def external_files(path: Path) -> tuple[str, ...]:
    """Names of the files that hold the graph's weights, beside it. Raises ExportError for any other place or a link.

    A graph may name any path; readers that follow it would read, or map, files that are none of its business.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ExportError(f"{path} cannot be read as an ONNX file: {error}") from error
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    names = sorted({ExternalDataInfo(tensor).location for tensor in tensors})
    for name in names:
        if name != os.path.basename(name) or not (path.parent / name).is_file() or (path.parent / name).is_symlink():
            raise ExportError(f"{path} keeps weights in {name!r}, which is not a file beside it")
    return tuple(names)


def read_metadata(path: Path) -> dict[str, str]:
    """What the graph says of itself."""
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def _trace(graph: Graph) -> Any:
    """The exporter's program. The batch axis is named; every other axis is fixed."""
    batch = Dim(BATCH_AXIS, min=1)
    axis = batch if graph.shared_calls == 1 else graph.shared_calls * batch
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                dynamo=True,
                opset_version=graph.opset,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                dynamic_shapes=tuple({0: axis} for _ in graph.inputs),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"{graph.name} cannot be exported: {str(error).strip().splitlines()[0]}") from error
    assert program is not None
    return program


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the remark that several axes share one name, which is what we asked for, and torch's own deprecations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"# The axis name: .* will not be used", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        yield


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
