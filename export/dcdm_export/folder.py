"""The export folder: one finished network after the other in a work folder, then everything into place at once.

Comes in: an `Order`. Goes out: the folder with graphs, engines, parity.json and, last, signature.json. What an earlier
export or an interrupted one left is taken over when its key and its hashes are right; the old folder stays as it is
until the new one is complete.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_export.engine_key import (
    EngineError,
    EngineKey,
    EngineSettings,
    Gpu,
    check_engine,
    engine_key,
    read_key,
    write_engine,
)
from dcdm_export.finished import (
    UNFINISHED_FILE,
    Finished,
    drop_strays,
    read_finished,
    swap_folders,
    sweep,
    write_parity,
)
from dcdm_export.onnx_graph import ExportError, Graph, check_graph, export_graph
from dcdm_export.parity import Case, ParityError, compare, expected_outputs, judge
from dcdm_export.signature import (
    DENOISER,
    SIGNATURE_FILE,
    EngineFile,
    ModelFacts,
    Signature,
    SignatureError,
    read_signature,
    verify_files,
    write_signature,
)
from dcdm_export.trt_engine import build_engine

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
Gate = Callable[[EngineFile, Finished], Any]  # -> the engine's entry for parity.json


@dataclass(frozen=True)
class Request:
    """One network. graph.module is float32 at first; `cast` puts it into graph.precision, after it served as reference.

    cases: what the graph is compared by. cast None = it stays float32.
    """

    graph: Graph
    cases: Sequence[Case]
    cast: Callable[[], None] | None = None


@dataclass(frozen=True)
class EngineOrder:
    """Engines for the denoiser, one per entry of `batches` (images). trt: the module. timing_cache: outlives a run.

    timed: told the seconds that each engine took to build. open: what runs engines, (folder, signature) -> run, for the
    gate; None = they are not compared.
    """

    trt: Any
    gpu: Gpu
    batches: Sequence[int]
    settings: EngineSettings
    timing_cache: Path | None = None
    tune: Callable[[Any], None] | None = None
    timed: Callable[[float], None] | None = None
    open: Callable[[Path, Signature], Callable[..., np.ndarray]] | None = None


@dataclass(frozen=True)
class Order:
    """Everything one export makes. progress: (what, done, total); it may raise to stop, what is finished is kept.

    device: where PyTorch and the graphs compute what is compared.
    """

    facts: ModelFacts
    requests: Sequence[Request]
    versions: Mapping[str, str]
    dcdm_version: str
    engines: EngineOrder | None = None
    device: str = "cpu"
    progress: Progress = lambda what, done, total: None
    note: Note = lambda message: None


def make_export(order: Order, target: Path, work: Path, *, afresh: bool = False) -> Signature:
    """Fills `work`, a folder on the same disk, and swaps it into `target`'s place. The same call again resumes.

    afresh: takes nothing over. Raises ExportError, ParityError, EngineError, and OSError when the disk is full.
    """
    if afresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    sweep(work)
    found = () if afresh else (read_finished(work, UNFINISHED_FILE), read_finished(target, SIGNATURE_FILE))
    sources = [source for source in found if source is not None]
    made = Finished(work, Signature(order.facts, {}, order.dcdm_version, dict(order.versions)), {})
    references = _References(order.device)
    for request in order.requests:
        made = _take_network(request, made, sources, order) or _make_network(request, made, order, references)
    for batch in order.engines.batches if order.engines else ():
        gate = partial(_gate, order=order, references=references)
        made = _take_engine(batch, made, sources, order, gate) or _make_engine(batch, made, order, gate)
    made = _keep_engines(made, sources, order.engines)
    drop_strays(work, made.signature)
    write_signature(work, made.signature)
    swap_folders(work, target)
    (target / UNFINISHED_FILE).unlink(missing_ok=True)
    _recheck(target, order)
    return made.signature


class _References:
    """What PyTorch gives in float32, computed once per network and before the network is cast."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._known: dict[str, list[np.ndarray]] = {}

    def of(self, request: Request) -> list[np.ndarray]:
        name = request.graph.name
        if name not in self._known:
            self._known[name] = expected_outputs(request.graph.module, request.cases, self._device)
        return self._known[name]


def _make_network(request: Request, made: Finished, order: Order, references: _References) -> Finished:
    """Reference values, graph, comparison. Only a graph that passed enters the signature."""
    graph, what = request.graph, f"exporting {request.graph.name}"
    order.progress(what, 0, 3)
    _check_space(made.folder, graph)
    expected = references.of(request)
    if request.cast is not None:
        request.cast()
    order.progress(what, 1, 3)
    network = export_graph(graph, made.folder)
    order.progress(what, 2, 3)
    try:
        parity = compare(graph.name, made.folder, network, request.cases, expected, order.device)
    except ParityError as error:
        write_parity(made.folder, made.parity | {graph.name: asdict(error.parity)})
        raise
    if parity.status == "not checked":
        order.note(f"{graph.name}: {parity.reason}")
    made = made.with_network(graph.name, network, asdict(parity))
    order.progress(what, 3, 3)
    return made


def _take_network(request: Request, made: Finished, sources: Sequence[Finished], order: Order) -> Finished | None:
    """The same network from an earlier export, if its files are what they were."""
    name = request.graph.name
    for source in sources:
        network = source.signature.networks.get(name)
        if network is None or network.key != request.graph.key or name not in source.parity:
            continue
        try:
            verify_files(source.folder, network.sha256)
        except SignatureError as error:
            order.note(f"{error}; it is exported again")
            continue
        made.link(source.folder, network.files)
        return made.with_network(name, network, source.parity[name])
    return None


def _make_engine(batch: int, made: Finished, order: Order, gate: Gate) -> Finished:
    engines = order.engines
    assert engines is not None
    network, key = made.signature.networks[DENOISER], _key(engines, made, batch)

    def progress(what: str, done: int, total: int) -> None:
        order.progress(f"{what} for batch {batch}", done, total)

    clock = time.monotonic()
    plan = build_engine(
        engines.trt,
        made.folder / network.file,
        key.shapes,
        engines.settings,
        timing_cache=engines.timing_cache,
        progress=progress,
        tune=engines.tune,
    )
    if engines.timed is not None:
        engines.timed(time.monotonic() - clock)
    engine = write_engine(made.folder, DENOISER, batch, key, plan)
    return made.with_engine(engine, gate(engine, made))


def _gate(engine: EngineFile, made: Finished, *, order: Order, references: _References) -> Any:
    """An engine against PyTorch: its entry for parity.json, None where nothing can run it here.

    It reads the same cases as the graph did; a batch that the engine does not have is filled up or split. Raises
    ParityError, and then the engine is gone.
    """
    engines = order.engines
    request = next((request for request in order.requests if request.graph.name == engine.network), None)
    if engines is None or engines.open is None or request is None:
        return None
    network = made.signature.networks[engine.network]
    rounded = engines.settings.tf32 and network.precision == "fp32"  # TF32 has as many bits of mantissa as float16
    try:
        run = engines.open(made.folder, replace(made.signature, engines=(engine,)))
        provider = f"TensorRT {engines.trt.__version__} on {engines.gpu}"
        precision = "fp16" if rounded else network.precision
        return asdict(judge(engine.file, precision, provider, run, request.cases, references.of(request)))
    except ParityError as error:
        for name in (engine.file, engine.key_file):
            (made.folder / name).unlink(missing_ok=True)
        write_parity(made.folder, made.parity | {engine.file: asdict(error.parity)})
        raise


def _take_engine(batch: int, made: Finished, sources: Sequence[Finished], order: Order, gate: Gate) -> Finished | None:
    """The same engine from an earlier export, if it is what it was."""
    engines = order.engines
    assert engines is not None
    key = _key(engines, made, batch)
    for source in sources:
        for engine in source.signature.engines:
            if (engine.network, engine.cache_key) != (DENOISER, key.hash):
                continue
            try:
                check_engine(source.folder, engine, tensorrt=key.tensorrt, gpu=key.gpu, graph=key.graph)
            except (EngineError, SignatureError) as error:
                order.note(f"{error}; it is built again")
                continue
            made.link(source.folder, (engine.file, engine.key_file))
            return made.with_engine(engine, source.parity.get(engine.file) or gate(engine, made))
    return None


def _keep_engines(made: Finished, sources: Sequence[Finished], engines: EngineOrder | None) -> Finished:
    """Engines that this call did not ask for stay while they fit the graph, and the GPU and TensorRT if these are here.

    An engine is minutes of work, and a later call for other batches, or for graphs alone, does not make it wrong.
    """
    graph = made.signature.networks[DENOISER].hash if DENOISER in made.signature.networks else None
    for source in sources:
        for engine in source.signature.engines:
            key = read_key(source.folder, engine)
            if key is None or engine.file in {other.file for other in made.signature.engines}:
                continue
            here = (engines.trt.__version__, engines.gpu) if engines else (key.tensorrt, key.gpu)
            try:
                check_engine(source.folder, engine, tensorrt=here[0], gpu=here[1], graph=graph or "")
            except (EngineError, SignatureError):
                continue
            made.link(source.folder, (engine.file, engine.key_file))
            made = made.with_engine(engine, source.parity.get(engine.file))
    return made


def _key(engines: EngineOrder, made: Finished, batch: int) -> EngineKey:
    network = made.signature.networks[DENOISER]
    return engine_key(engines.trt.__version__, engines.gpu, network, batch, engines.settings)


def _check_space(folder: Path, graph: Graph) -> None:
    """Fails before the slow part. The weights' size and a tenth; half precision needs half."""
    elements = sum(tensor.numel() for tensor in (*graph.module.parameters(), *graph.module.buffers()))
    needed = int(elements * (4 if graph.precision == "fp32" else 2) * 1.1)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{graph.name} needs {needed / 2**20:.0f} MiB", str(folder))


def _recheck(target: Path, order: Order) -> None:
    """Every graph once more from its final place; what does not hold there must not be called finished."""
    try:
        signature = read_signature(target)
        for request in order.requests:
            if check_graph(target, request.graph) != signature.networks[request.graph.name]:
                raise ExportError(f"{request.graph.name} in {target} is not what was written")
    except (SignatureError, ExportError):
        (target / SIGNATURE_FILE).unlink(missing_ok=True)
        raise
