"""TensorRT's runtime imitated by ONNX Runtime: it reads its inputs and writes its outputs at the addresses it is given.

An "engine" is a JSON text with an ONNX file and a range of batches. Everything else behaves as TensorRT's API says;
`test_tensorrt_names.py` checks that no name is invented.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "11.0.fake"


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"

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
        self._plan, self._range = plan, plan["range"]
        self._session = onnxruntime.InferenceSession(base64.b64decode(plan["onnx"]), providers=["CPUExecutionProvider"])
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

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan["layers"])

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig()

    def serialize_with_config(self, config: ISerializationConfig) -> bytes:
        """What was refitted can be refitted again only where that was asked for."""
        kept = self._plan["refit"] and SerializationFlag.INCLUDE_REFIT in config._flags
        return json.dumps(self._plan | {"refit": kept}).encode()


class LayerInformationFormat:
    JSON = "json"


class EngineInspector:
    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers

    def get_engine_information(self, format: str) -> str:
        assert format == LayerInformationFormat.JSON
        return json.dumps({"Layers": self._layers, "Bindings": []})


class SerializationFlag:
    INCLUDE_REFIT = "include refit"


class ISerializationConfig:
    def __init__(self) -> None:
        self._flags: set[str] = set()

    def set_flag(self, flag: str) -> bool:
        self._flags.add(flag)
        return True


class Refitter:
    """`_weights`: of the new graph, by the names of the engine's own; what is missing keeps it from refitting."""

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        if not engine._plan["refit"]:
            logger.log(ILogger.ERROR, "the engine is not refittable")
            raise TypeError("factory function returned nullptr")  # what the bindings do
        self._engine, self._own = engine, _weights(base64.b64decode(engine._plan["onnx"]))
        self._content, self._new = b"", dict[str, tuple[int, ...]]()

    def get_missing_weights(self) -> list[str]:
        return sorted(self._own.keys() - self._new.keys())

    def refit_cuda_engine(self) -> bool:
        self._engine._plan = self._engine._plan | {"onnx": base64.b64encode(self._content).decode()}
        return True


class ParserError:
    def __init__(self, words: str) -> None:
        self._words = words

    def desc(self) -> str:
        return self._words


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter, self._errors = refitter, list[ParserError]()

    def refit_from_file(self, model: str) -> bool:
        content = Path(model).read_bytes()
        new, own = _weights(content), self._refitter._own
        self._errors = [ParserError(f"{name} has another shape") for name in new if new[name] != own.get(name)]
        self._refitter._content, self._refitter._new = content, new
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


def _weights(content: bytes) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load_from_string(content).graph.initializer}


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


FUSED = ({"Name": "_gemm_mha_v2_myl0_3", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0x1f"}, "convolution 1")


def plan(graph: Path, lowest: int, highest: int, *, refit: bool = False, layers: Any = FUSED) -> bytes:
    """What stands for a serialised engine here. layers: what its inspector tells."""
    content = base64.b64encode(graph.read_bytes()).decode()
    return json.dumps({"onnx": content, "range": (lowest, highest), "refit": refit, "layers": layers}).encode()
