"""TensorRT's runtime imitated by ONNX Runtime: it reads its inputs and writes its outputs at the addresses it is given.

An "engine" is a JSON text that names an ONNX file and a range of batches. Everything else behaves as TensorRT's API
says; `test_tensorrt_names.py` checks that no name is invented.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

__version__ = "11.0.fake"


class ILogger:
    ERROR = "error"

    def __init__(self) -> None:
        pass

    def log(self, severity: str, message: str) -> None:
        raise NotImplementedError


class Runtime:
    def __init__(self, log: ILogger) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        try:
            return ICudaEngine(json.loads(plan))
        except ValueError:
            self._log.log(ILogger.ERROR, "magic tag does not match")
            return None


class ICudaEngine:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._range = plan["range"]
        self._session = onnxruntime.InferenceSession(plan["onnx"], providers=["CPUExecutionProvider"])
        self._tensors = [*self._session.get_inputs(), *self._session.get_outputs()]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return self._tensors[index].name

    def get_tensor_dtype(self, name: str) -> str:
        return next(tensor.type for tensor in self._tensors if tensor.name == name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        shape = next(tensor.shape for tensor in self._session.get_inputs() if tensor.name == name)
        lowest, highest = self._range
        return [(rows, *shape[1:]) for rows in (lowest, highest, highest)]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self._session, self._range)


class IExecutionContext:
    def __init__(self, session: onnxruntime.InferenceSession, allowed: tuple[int, int]) -> None:
        self._session, self._range = session, allowed
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._range[0] <= shape[0] <= self._range[1], f"{name} {shape} is outside of the profile {self._range}"
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._session.get_inputs() if tensor.name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        feeds = {}
        for tensor in self._session.get_inputs():
            feeds[tensor.name] = self._memory(tensor.name, self._shapes[tensor.name], nptype(tensor.type)).copy()
        for tensor, value in zip(self._session.get_outputs(), self._session.run(None, feeds), strict=True):
            result = np.asarray(value)
            self._memory(tensor.name, result.shape, nptype(tensor.type))[...] = result
        return True

    def _memory(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        kind = np.ctypeslib.as_ctypes_type(dtype) * math.prod(shape)
        return np.ctypeslib.as_array(kind.from_address(self._addresses[name])).reshape(shape)


def nptype(trt_type: str) -> type:
    return {"tensor(float)": np.float32, "tensor(int64)": np.int64}[trt_type]


def plan(onnx: Path, lowest: int, highest: int) -> bytes:
    """What stands for a serialised engine here."""
    return json.dumps({"onnx": str(onnx), "range": (lowest, highest)}).encode()
