"""What an export is asked for: networks with the cases they are compared by, and engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_export.engine_key import EngineSettings, Gpu
from dcdm_export.fp8 import NetworkCall
from dcdm_export.onnx_graph import Graph
from dcdm_export.parity import Case, expected_outputs
from dcdm_export.signature import ModelFacts, Signature

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
Inference = Callable[..., np.ndarray]  # a network's inputs, by position -> its output


@dataclass(frozen=True)
class NetworkRequest:
    """One network. graph.module is float32 at first; `cast` puts it into graph.precision, after it served as reference.

    cases: what the graph is compared by. cast None = it stays float32. calls: of a graph in fp8, calls of the network
    in use, by which it is quantised; asked for when it has to be made.
    """

    graph: Graph
    cases: Sequence[Case]
    cast: Callable[[], None] | None = None
    calls: Callable[[], Sequence[NetworkCall]] | None = None


@dataclass(frozen=True)
class EngineOrder:
    """Engines: by network, the images that one takes. trt: the module. timing_cache: outlives a run.

    timed: told the seconds that each engine took to build. open: what runs the engines of one network, (folder,
    signature, network) -> run, for the gate; None = they are not compared. attended: networks that have attention for
    which TensorRT has fused kernels, so that an engine without any is worth a warning.
    """

    trt: Any
    gpu: Gpu
    batches: Mapping[str, Sequence[int]]
    settings: EngineSettings
    timing_cache: Path | None = None
    tune: Callable[[Any], None] | None = None
    timed: Callable[[float], None] | None = None
    open: Callable[[Path, Signature, str], Inference] | None = None
    attended: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Order:
    """Everything one export makes. progress: (what, done, total); it may raise to stop, what is finished is kept.

    device: where PyTorch and the graphs compute what is compared.
    """

    facts: ModelFacts
    requests: Sequence[NetworkRequest]
    versions: Mapping[str, str]
    dcdm_version: str
    engines: EngineOrder | None = None
    device: str = "cpu"
    progress: Progress = lambda what, done, total: None
    note: Note = lambda message: None


class References:
    """What PyTorch gives in float32, computed once per network and before the network is cast."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._known: dict[str, list[np.ndarray]] = {}

    def of(self, request: NetworkRequest) -> list[np.ndarray]:
        name = request.graph.name
        if name not in self._known:
            self._known[name] = expected_outputs(request.graph.module, request.cases, self._device)
        return self._known[name]
