"""TensorRT-RTX from two wheels: bindings, and the libraries that ONNX Runtime's execution provider brings."""

from __future__ import annotations

import ctypes
import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BINDINGS, LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = "pip install '.[tensorrt-rtx]'"


def load_rtx() -> ModuleType:
    """Skips where it is not installed. The libraries are found by their own names once they are loaded."""
    libraries = find_spec(LIBRARIES)
    if find_spec(BINDINGS) is None or libraries is None or not libraries.submodule_search_locations:
        pytest.skip(f"TensorRT-RTX is not installed: {INSTALL}")
    folder = Path(next(iter(libraries.submodule_search_locations)))
    for name in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"):
        ctypes.CDLL(str(next(folder.glob(f"{name}*"))), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module(BINDINGS)


def for_ampere(rtx: ModuleType) -> Any:
    """Without a GPU the builder must be told what to build for: compute capability 8.0, as of an A100."""

    def tune(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM80, 0)

    return tune
