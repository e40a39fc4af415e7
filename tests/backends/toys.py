"""ONNX graphs of a few nodes with the contract's edges, and their NumPy twins: everything about running a graph but its
arithmetic."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import torch
from torch import Tensor

from dcdm_export.signature import NetworkFile, TensorSpec, digest

SIDE, CHANNELS, TOKENS, WIDTH, CLASSES = 4, 2, 3, 5, 4
INPUTS = (
    TensorSpec("latents", "float32", ("batch", CHANNELS, SIDE, SIDE)),
    TensorSpec("timestep", "float32", ("batch",)),
    TensorSpec("text", "float32", ("batch", TOKENS, WIDTH)),
    TensorSpec("label", "int64", ("batch",)),
    TensorSpec("difficulty", "float32", ("batch",)),
)
DENOISER = """
<ir_version: 10, opset_import: ["" : 21]>
toy (float[batch,2,4,4] latents, float[batch] timestep, float[batch,3,5] text, int64[batch] label,
     float[batch] difficulty) => (float[batch,2,4,4] prediction)
<int64[3] spread = {1,2,3}, int64[2] inner = {1,2}>
{
  words = ReduceMean <keepdims = 0> (text, inner)
  number = Cast <to = 1> (label)
  a = Add (words, number)
  b = Mul (difficulty, timestep)
  c = Add (a, b)
  bias = Unsqueeze (c, spread)
  prediction = Add (latents, bias)
}
"""
DECODER = """
<ir_version: 10, opset_import: ["" : 21]>
toy (float[batch,4,8,8] latents) => (float[batch,3,32,32] images)
<int64[1] first = {0}, int64[1] last = {3}, int64[1] axis = {1}, float[4] scales = {1.0, 1.0, 4.0, 4.0}>
{
  colours = Slice (latents, first, last, axis)
  bounded = Tanh (colours)
  images = Resize <mode = "nearest"> (bounded, , scales)
}
"""


def write_graph(file: Path, text: str) -> Path:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)
    return file


def toy_denoiser(folder: Path, calls: int = 1) -> NetworkFile:
    """Row by row: latents + mean(text) + label + difficulty * timestep."""
    file = write_graph(folder / "denoiser.onnx", DENOISER)
    output = (TensorSpec("prediction", "float32", INPUTS[0].shape),)
    return NetworkFile(file.name, {file.name: digest(file)}, INPUTS, output, 21, "fp32", shared_calls=calls)


def toy_inputs(rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, CHANNELS, SIDE, SIDE, generator=generator),
        torch.rand(rows, generator=generator) * 1000,
        torch.randn(rows, TOKENS, WIDTH, generator=generator),
        torch.arange(rows) % CLASSES,
        torch.rand(rows, generator=generator),
    )


def toy_prediction(latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
    return latents + (text.mean((1, 2)) + label + difficulty * timestep)[:, None, None, None]
