"""The numeric gate: an exported graph in ONNX Runtime, or an engine, against the PyTorch module it came from.

Comes in: a graph, named cases, and what the module gives for them in float32. Goes out: the errors per case, or
`ParityError` when one is too large. The reference is float32 whatever the graph's precision, so the figures of a
half-precision graph say what the precision costs, rounded weights included, and not only that the exporter is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel  # pyright: ignore
from torch import Tensor, nn

from dcdm_export.signature import NetworkFile, Precision

# Largest |error|. For float32 absolute; for halves as a share of the largest |value|, which is ten steps of their
# spacing (2^-10 and 2^-7): what a few dozen rounded layers add up to, while one wrong layer is a hundred times more.
# Of fp8 about one step (2^-3): only products are rounded so far, with errors that cancel out within a sum.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "fp8": 1e-1}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class Case:
    """Inputs for one run, by name, and what to call it."""

    name: str
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class CaseError:
    """max_abs, mean_abs: of the difference; None when it is not finite. relative: max_abs / largest |expected|."""

    name: str
    batch: int
    max_abs: float | None
    mean_abs: float | None
    relative: float | None


@dataclass(frozen=True)
class Parity:
    """One network's entry in parity.json. tolerance: see TOLERANCE. reason: why it was not checked."""

    network: str
    precision: Precision
    status: Literal["passed", "failed", "not checked"]
    provider: str
    tolerance: float
    cases: tuple[CaseError, ...] = ()
    reason: str = ""

    @property
    def max_abs(self) -> float | None:
        found = [case.max_abs for case in self.cases]
        return max((value for value in found if value is not None), default=None) if None not in found else None


class ParityError(ArithmeticError):
    """The graph does not compute what the module computes. parity: the figures."""

    def __init__(self, message: str, parity: Parity) -> None:
        super().__init__(message)
        self.parity = parity


@torch.no_grad()
def expected_outputs(module: nn.Module, cases: Sequence[Case], device: str = "cpu") -> list[np.ndarray]:
    """What the module gives, float32, one array per case. Run it before the module is cast to half precision.

    device: where it computes, in whole float32; the module comes back to the CPU.
    """
    if device == "cpu":
        return [module(*case.inputs.values()).float().numpy() for case in cases]
    with _whole_products():
        module.to(device)
        try:
            runs = [[tensor.to(device) for tensor in case.inputs.values()] for case in cases]
            return [module(*inputs).float().cpu().numpy() for inputs in runs]
        finally:
            module.to("cpu")


def compare(
    name: str,
    folder: Path,
    network: NetworkFile,
    cases: Sequence[Case],
    expected: Sequence[np.ndarray],
    device: str = "cpu",
) -> Parity:
    """Runs the graph in ONNX Runtime, on the GPU if device is one and ONNX Runtime has its provider, else on the CPU.

    Where no provider can run it the status is `not checked` and says why. Raises ParityError out of tolerance.
    """
    try:
        session = _session(folder / network.file, device, network.precision)
    except NoKernel as error:
        reason = f"not checked on this machine: {str(error).strip().splitlines()[0]}"
        return Parity(name, network.precision, "not checked", "", TOLERANCE[network.precision], reason=reason)
    names = [spec.name for spec in network.inputs]

    def run(*inputs: Tensor) -> np.ndarray:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return np.asarray(session.run(None, feeds)[0])

    return judge(name, network.precision, session.get_providers()[0], run, cases, expected)


def judge(
    name: str,
    precision: Precision,
    provider: str,
    run: Callable[..., np.ndarray],
    cases: Sequence[Case],
    expected: Sequence[np.ndarray],
) -> Parity:
    """The gate, for whatever runs the network. run: a case's inputs, by position -> the output.

    Raises ParityError out of tolerance, ValueError when there is nothing to compare by or a shape differs.
    """
    # all() of nothing would let it pass
    if not cases:
        raise ValueError(f"nothing to compare {name} by")
    errors = tuple(
        _error(case, run(*case.inputs.values()), values) for case, values in zip(cases, expected, strict=True)
    )
    passed = all(_within(error, precision) for error in errors)
    parity = Parity(name, precision, "passed" if passed else "failed", provider, TOLERANCE[precision], errors)
    if not passed:
        raise ParityError(_complaint(parity), parity)
    return parity


def _session(path: Path, device: str, precision: Precision) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = optimization_level(precision)
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch's threads are still there
    return onnxruntime.InferenceSession(path, options, providers=_providers(device))


def optimization_level(precision: Precision) -> onnxruntime.GraphOptimizationLevel:
    """ONNX Runtime's: all of it but for fp8, whose 8-bit values it would move behind operators that have none."""
    levels = onnxruntime.GraphOptimizationLevel
    return levels.ORT_ENABLE_BASIC if precision == "fp8" else levels.ORT_ENABLE_ALL


def _providers(device: str) -> list[Any]:
    """Stable Diffusion's attention scores take 16 GB on a CPU, which has no fused attention for them."""
    if not device.startswith("cuda") or CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    onnxruntime.preload_dlls()  # the CUDA libraries that torch brings
    number = device.partition(":")[2]
    # no TF32, as in the reference (`_whole_products`)
    return [(CUDA, {"device_id": int(number) if number else torch.cuda.current_device(), "use_tf32": 0}), CPU]


@contextmanager
def _whole_products() -> Iterator[None]:
    """Without TF32, which rounds the inputs of float32 products and which convolutions use by default."""
    kinds: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    try:
        yield
    finally:
        for kind, allowed in zip(kinds, before, strict=True):
            kind.allow_tf32 = allowed


def _error(case: Case, got: np.ndarray, expected: np.ndarray) -> CaseError:
    values = np.asarray(got, np.float64)
    # NumPy may stretch one of them to the other's, and compare
    if values.shape != expected.shape:
        raise ValueError(f"{case.name}: the graph gives {values.shape}, the module {expected.shape}")
    difference = np.abs(values - expected)
    largest, mean, scale = float(difference.max()), float(difference.mean()), float(np.abs(expected).max())
    # parity.json is strict JSON, which has no NaN
    if not (math.isfinite(largest) and math.isfinite(scale)):
        return CaseError(case.name, len(expected), None, None, None)
    return CaseError(case.name, len(expected), largest, mean, largest / scale if scale else largest)


def _within(error: CaseError, precision: Precision) -> bool:
    found = error.max_abs if precision == "fp32" else error.relative
    return found is not None and found <= TOLERANCE[precision]


def _complaint(parity: Parity) -> str:
    worst = max(parity.cases, key=lambda case: math.inf if case.max_abs is None else case.max_abs)
    if worst.max_abs is None:
        return f"{parity.network} in {parity.precision}: NaN or infinity ({worst.name})"
    measure, found = ("", worst.max_abs) if parity.precision == "fp32" else (" of the largest value", worst.relative)
    return (
        f"{parity.network} in {parity.precision} differs from PyTorch by {found:.2g}{measure} ({worst.name}); "
        f"allowed: {parity.tolerance:.2g}"
    )
