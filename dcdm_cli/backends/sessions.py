"""Which backends work on this machine: each opens a session on a network of one addition, and runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

EXTRA = {"openvino": "openvino", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class BackendTry:
    """works: None = not installed, which is no fault. text: the version and where it ran, or what failed."""

    backend: str
    works: bool | None
    text: str


def try_backends() -> list[BackendTry]:
    """Never raises: a backend that fails to load is an answer."""
    return [session for name, tries in TRIES.items() for session in _tried(name, tries)]


def _tried(name: str, tries: Callable[[], Iterator[str]]) -> Iterator[BackendTry]:
    try:
        for text in tries():
            yield BackendTry(name, True, text)
    except ModuleNotFoundError as error:
        extra = f": pip install 'dcdm-cli[{EXTRA[name]}]'" if name in EXTRA else f" ({error})"
        yield BackendTry(name, None if name in EXTRA else False, f"not installed{extra}")
    except Exception as error:  # native libraries raise what they like
        yield BackendTry(name, False, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")


def _torch() -> Iterator[str]:
    import torch

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    for device in devices:
        one = torch.ones(2, 2, device=device)
        _check((one + one).cpu().numpy())
    yield f"{torch.__version__} on {', '.join(devices)}"


def _onnxruntime() -> Iterator[str]:
    import onnxruntime

    there = onnxruntime.get_available_providers()
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        # a build with CUDA lists it whether or not there is a GPU
        if provider not in there or (provider.startswith("CUDA") and not _has_cuda()):
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is said here
        session = onnxruntime.InferenceSession(_graph(), options, providers=[provider])
        _check(session.run(None, {"x": np.ones((2, 2), np.float32)})[0])
        used = session.get_providers()[0].removesuffix("ExecutionProvider")
        # it takes the CPU by itself where CUDA's libraries do not load
        if used != provider.removesuffix("ExecutionProvider"):
            raise RuntimeError(f"{provider} was asked for, and {used} ran")
        yield f"{onnxruntime.__version__} on {used}"


def _openvino() -> Iterator[str]:
    import openvino

    from dcdm_cli.backends.ov_backend import shared_core

    core = shared_core()
    compiled = core.compile_model(core.read_model(_graph()), "CPU")
    _check(compiled([np.ones((2, 2), np.float32)])[0])
    yield f"{openvino.__version__.split('-')[0]} on CPU"


def _tensorrt() -> Iterator[str]:
    import tensorrt  # pyright: ignore[reportMissingImports]

    if not _has_cuda():
        raise RuntimeError("installed, and there is no CUDA GPU")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    if not tensorrt.OnnxParser(network, logger).parse(_graph()):
        raise RuntimeError("the parser refused a network of one addition")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None or tensorrt.Runtime(logger).deserialize_cuda_engine(plan) is None:
        raise RuntimeError("no engine could be built")
    yield f"{tensorrt.__version__} on CUDA"


TRIES: dict[str, Callable[[], Iterator[str]]] = {
    "torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino, "tensorrt": _tensorrt,
}  # fmt: skip


def _graph() -> bytes:
    """y = x + x, float32 [2, 2]."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "one", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def _check(found: Any) -> None:
    if not np.array_equal(np.asarray(found), np.full((2, 2), 2, np.float32)):
        raise RuntimeError(f"1 + 1 gave {np.asarray(found).tolist()}")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
