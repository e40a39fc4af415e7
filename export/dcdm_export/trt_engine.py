"""One ONNX graph -> one TensorRT engine per batch bucket, and back from a file to an engine.

Serves TensorRT 10.12 and later and 11 from one path: always strongly typed (precision lives in the graph), no precision
flags. The functions take the `tensorrt` module, so that the same code runs on TensorRT-RTX, whose builder needs no GPU.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dcdm_export.engine_key import EngineError, EngineSettings, Range
from dcdm_export.orders import Progress
from dcdm_export.whole_files import whole_files

LOWEST_VERSION = (10, 12)
FUSED_ATTENTION = "mha"  # in the names of TensorRT's kernels for it: _gemm_mha_v2, fmha_v2
MEMORY_WORDS = ("outofmemory", "insufficientmemory", "badalloc")  # in TensorRT's messages, letters only
Trt = Any  # the tensorrt module, or tensorrt_rtx


class MissingTensorRT(EngineError):
    """TensorRT is not installed, or too old."""


class BuildMemoryError(EngineError):
    """The GPU's memory does not suffice to build the engine or to run it."""


def import_tensorrt() -> Trt:
    """The tensorrt module. Raises MissingTensorRT with what to install."""
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise MissingTensorRT(f"TensorRT cannot be imported: {error}") from error
    check_version(trt)
    return trt


def check_version(trt: Trt) -> None:
    found = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if found < LOWEST_VERSION:
        wanted = ".".join(map(str, LOWEST_VERSION))
        raise MissingTensorRT(f"TensorRT {trt.__version__} is too old: {wanted} or later is needed")


def build_engine(
    trt: Trt,
    graph: Path,
    shapes: Mapping[str, Range],
    settings: EngineSettings,
    *,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
    tune: Callable[[Any], None] | None = None,
) -> bytes:
    """Parses and builds; returns the serialised engine.

    timing_cache: file with measured tactics, read when it fits and rewritten. progress may raise to stop the build.
    tune: called with the IBuilderConfig before the build. Raises EngineError with TensorRT's own words,
    BuildMemoryError where memory ran out.
    """
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log)  # keeps the weights the network refers to
    if not parser.parse_from_file(str(graph)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineError(f"TensorRT {trt.__version__} cannot parse {graph}: {'; '.join(reasons) or log.last}")
    make_attention_decomposable(trt, network)
    config = _configure(trt, builder, shapes, settings)
    config.progress_monitor = monitor = _make_monitor(trt, progress)
    if timing_cache is not None:
        _use_timing_cache(config, timing_cache)
    if tune is not None:
        tune(config)
    plan = builder.build_serialized_network(network, config)
    # first: of a build that was stopped there is no plan either
    if monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        kind = BuildMemoryError if log.out_of_memory else EngineError
        raise kind(f"TensorRT {trt.__version__} cannot build {graph}: {log.last}")
    if timing_cache is not None:
        _save_timing_cache(config, timing_cache)
    return bytes(plan)


def make_attention_decomposable(trt: Trt, network: Any) -> int:
    """Lets TensorRT take Attention layers apart where no fused kernel fits (float32; heads of 8). Returns how many.

    The layer comes back as a plain ILayer and must be re-classed to reach its `attention`.
    """
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)
    mended = 0
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionOutputLayer
            layer.attention.decomposable = True
            mended += 1
    return mended


def load_engine(trt: Trt, path: Path, log: Any = None) -> Any:
    """The ICudaEngine of a file that passed `check_engine`. Raises EngineError when TensorRT refuses it."""
    log = log or _make_log(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot load {path}: {log.last}")
    return engine


def fused_attention(trt: Trt, engine: Any) -> int | None:
    """How many of a loaded engine's layers are attention in one kernel, by what its inspector says of them.

    Engines that were built without details name their layers alone, which is enough. None when what it says cannot be
    read: that is no reason to give up an engine that computes what it should.
    """
    inspector = engine.create_engine_inspector()
    try:
        layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return sum(FUSED_ATTENTION in _layer_words(layer) for layer in layers)


def _layer_words(entry: str | dict[str, Any]) -> str:
    """What TensorRT calls the layer and its kernel; the rest of an entry names our own nodes and tensors."""
    if isinstance(entry, str):
        return entry.lower()
    return " ".join(str(entry.get(key, "")) for key in ("Name", "LayerType", "TacticName")).lower()


def refit_engine(trt: Trt, path: Path, graph: Path) -> bytes:
    """The engine in `path`, which passed `check_engine`, with the weights of another graph of the same shape.

    Returns the serialised engine, which can be refitted again. Raises EngineError where TensorRT does not do it.
    """
    log = _make_log(trt)
    engine = load_engine(trt, path, log)
    try:
        refitter = trt.Refitter(engine, log)
    except TypeError as error:  # what the bindings make of none
        raise EngineError(f"{path} was not built to take other weights: {log.last}") from error
    parser_refitter = trt.OnnxParserRefitter(refitter, log)
    if not parser_refitter.refit_from_file(str(graph)):
        reasons = [parser_refitter.get_error(i).desc() for i in range(parser_refitter.num_errors)]
        raise EngineError(f"TensorRT cannot refit {path.name}: {'; '.join(reasons) or log.last}")
    if missing := refitter.get_missing_weights():
        raise EngineError(f"TensorRT cannot refit {path.name}: {graph.name} has no {', '.join(missing[:3])}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"TensorRT cannot refit {path.name}: {log.last}")
    serialization = engine.create_serialization_config()
    # else what comes out could not be refitted again
    serialization.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(serialization))


def _creation_flags(trt: Trt) -> int:
    """Strongly typed where that must be asked for; from 11 on there is nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(trt: Trt, builder: Any, shapes: Mapping[str, Range], settings: EngineSettings) -> Any:
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # kernels' names for the inspector; costs no time
    if settings.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if not settings.tf32:
        # TensorRT has it on by itself
        config.clear_flag(trt.BuilderFlag.TF32)
    for name, (lowest, usual, highest) in shapes.items():
        profile.set_shape(name, lowest, usual, highest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the shapes {dict(shapes)}")
    return config


def _use_timing_cache(config: Any, file: Path) -> None:
    """Timings of another GPU or release do not fit and are dropped: they are a saving, not an input."""
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: Any, file: Path) -> None:
    with whole_files(file.parent) as part:
        (part / file.name).write_bytes(bytes(config.get_timing_cache().serialize()))


def _make_log(trt: Trt) -> Any:
    """A logger that keeps the last error, and whether memory ran out, instead of writing to stderr."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            # by name, as TensorRT's bindings ask for
            trt.ILogger.__init__(self)
            self.last, self.out_of_memory = "no reason given", False

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message
                # TensorRT writes it both ways: `out of memory`, `OutOfMemory`
                letters = "".join(filter(str.isalpha, message.lower()))
                # kept: the last error may only say that the build failed
                self.out_of_memory |= any(words in letters for words in MEMORY_WORDS)

    return Log()


def _make_monitor(trt: Trt, progress: Progress | None) -> Any:
    """Tells `progress` of the outermost phases. What it raises stops the build, and is raised again after it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.steps.get(phase_name)
            if progress is not None and total and self.stopped is None:
                try:
                    progress("building engine", step + 1, total)
                except BaseException as error:
                    self.stopped = error
            return self.stopped is None

    return Monitor()
