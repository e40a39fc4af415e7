"""Products in 8-bit floats (E4M3): NVIDIA's ModelOpt sets the ranges and puts the quantisation into a float32 graph.

Comes in: a graph in float32 and calls of its network in use. Goes out: the same graph with QuantizeLinear and
DequantizeLinear around convolutions and matrix products, the rest in float16, its edges as they were. TensorRT runs
that in 8 bits, on GPUs from compute capability 8.9; ONNX Runtime and OpenVINO compute with the rounded values, which
shows what the rounding costs and saves no time. Not from the paper.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dcdm_export.onnx_graph import ONE_FILE_BYTES, ExportError, Graph, check_graph, export_graph
from dcdm_export.signature import NetworkFile
from dcdm_export.whole_files import PART_SUFFIX, whole_files

FIRST_CAPABILITY = 8.9  # of GPUs that multiply 8-bit floats
NetworkCall = Mapping[str, np.ndarray]  # a network's inputs by name, the batch axis first


PARTS = ("modelopt", "cppimport", "lief", "onnx_graphsurgeon", "onnxconverter_common", "onnxslim", "polygraphy")


def missing_parts() -> list[str]:
    """Modules that quantising needs and that are not installed."""
    return [name for name in PARTS if importlib.util.find_spec(name) is None]


def export_fp8(
    graph: Graph, calls: Sequence[NetworkCall], folder: Path, *, one_file_bytes: int = ONE_FILE_BYTES
) -> NetworkFile:
    """Writes the graph, whose module is in float32, into `folder`, whole or not at all, and checks it there.

    calls: by whose largest values the ranges are set. Raises ExportError for calls of several shapes, or none.
    """
    if len({tuple(array.shape for array in call.values()) for call in calls}) != 1:
        raise ExportError(f"{graph.name} is quantised by calls of one shape, and there are {len(calls)} calls")
    file = f"{graph.name}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    # called as `finished.sweep` knows it: a killed process leaves it behind
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=PART_SUFFIX) as name:
        whole = Path(name) / export_graph(replace(graph, precision="fp32"), Path(name)).file
        model = _with_edges_of(whole, _quantized(whole, calls))
        onnx.helper.set_model_props(model, dict(graph.metadata))
        external = model.ByteSize() > one_file_bytes
        with whole_files(folder, last=file) as part:
            onnx.save(model, part / file, save_as_external_data=external, location=f"{file}.data")
    return check_graph(folder, graph)


def _quantized(file: Path, calls: Sequence[NetworkCall]) -> onnx.ModelProto:
    """In a process of its own: ModelOpt prints, changes ONNX Runtime's quantiser, and brings libraries that complain
    when Python ends. It ends with this one, whatever happens."""
    given, made = file.with_name("calls.npz"), file.with_name("quantized.onnx")
    arrays: dict[str, Any] = {
        f"{number}/{name}": array for number, call in enumerate(calls) for name, array in call.items()
    }
    np.savez(given, **arrays)
    # -P: it must not run a module of the folder that one stands in
    words = [sys.executable, "-P", "-m", "dcdm_export.quantizer", str(file), str(given), str(made)]
    pipe, joined = subprocess.PIPE, subprocess.STDOUT
    # nothing is written to its stdin, which closes when this process ends, and ends it
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=joined, text=True, errors="replace") as process:
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        # libraries that complain when Python ends come after the reason
        lines = [line for line in said.splitlines() if line.strip() and "nanobind" not in line]
        raise ExportError(f"ModelOpt cannot quantise {file.stem}: {(lines or ['no word why'])[-1].strip()}")
    return onnx.load(made)


def _with_edges_of(file: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The named batch axis again. What is known of the shapes inside is of the fixed one, and goes."""
    before = onnx.load(file, load_external_data=False).graph
    for theirs, ours in ((before.input, model.graph.input), (before.output, model.graph.output)):
        for edge, kept in zip(ours, theirs, strict=True):
            edge.CopyFrom(kept)
    del model.graph.value_info[:]
    return model
