"""What an engine was made for, written beside it and checked before it is loaded. Needs neither TensorRT nor torch.

An engine is a program for one GPU model and one TensorRT release, and loading it runs code from the file. So beside
each engine lies `<engine>.json` with everything it depends on; what has no such file, or another content, is refused.
What its user has not sealed (`seal.py`) is of unknown origin, however well a received folder fits together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dcdm_export.seal import is_sealed, seal
from dcdm_export.signature import EngineFile, NetworkFile, TensorSpec, digest, inside
from dcdm_export.whole_files import whole_files

MAX_KEY_BYTES = 2**20
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, most usual and largest shape


class EngineError(RuntimeError):
    """TensorRT cannot build or load this, or an engine is refused. The message carries TensorRT's own reason."""


@dataclass(frozen=True)
class Gpu:
    """name: as the driver gives it. compute_capability: "9.0" for an H100."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


@dataclass(frozen=True)
class EngineSettings:
    """fixed: one batch size per engine (min = opt = max), which CUDA graphs and the best tactics need; else 1 to it.

    optimization_level: 0 to 5, how long TensorRT searches. tf32: let float32 graphs multiply in 10 bits of mantissa.
    refit: the engine can take other weights later, which keeps TensorRT from folding them.
    """

    fixed: bool = True
    optimization_level: int = 3
    tf32: bool = False
    refit: bool = False


@dataclass(frozen=True)
class EngineKey:
    """Everything an engine depends on. graph: digest of the ONNX file with its external data."""

    tensorrt: str
    gpu: Gpu
    graph: str
    shapes: dict[str, Range]
    settings: EngineSettings

    @property
    def hash(self) -> str:
        """Settings that came later count where they are used: engines from before have the key that they had."""
        facts = asdict(self)
        if not self.settings.refit:
            del facts["settings"]["refit"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


_ADAPTER = TypeAdapter(EngineKey)


def engine_name(network: str, batch: int) -> str:
    return f"{network}.b{batch}.engine"


def engine_key(tensorrt: str, gpu: Gpu, network: NetworkFile, batch: int, settings: EngineSettings) -> EngineKey:
    """tensorrt: its version."""
    return EngineKey(tensorrt, gpu, network.hash, profile_shapes(network, batch, settings.fixed), settings)


def profile_shapes(network: NetworkFile, batch: int, fixed: bool) -> dict[str, Range]:
    """Shapes of each input for batches of `batch` images, each of `shared_calls` rows."""
    lowest, rows = network.shared_calls * (batch if fixed else 1), network.shared_calls * batch

    def shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
        return tuple(size if isinstance(axis, str) else axis for axis in spec.shape)

    return {spec.name: (shape(spec, lowest), shape(spec, rows), shape(spec, rows)) for spec in network.inputs}


def write_engine(folder: Path, network: str, batch: int, key: EngineKey, plan: bytes) -> EngineFile:
    """Engine and key file, whole or not at all; the key file comes last and says that the engine is complete."""
    name = engine_name(network, batch)
    sha256 = hashlib.sha256(plan).hexdigest()
    made_for = asdict(key)
    document = {"schema": 1, "cache_key": key.hash, "sha256": sha256, "made_for": made_for, "seal": seal(sha256)}
    with whole_files(folder, last=f"{name}.json") as part:
        (part / name).write_bytes(plan)
        (part / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return EngineFile(network, name, batch, key.graph, key.hash, f"{name}.json", sha256)


def check_engine(folder: Path, engine: EngineFile, *, tensorrt: str, gpu: Gpu, graph: str, trust: bool = False) -> Path:
    """The engine's path, once it is known to be ours, unchanged, and made for this TensorRT, GPU and graph.

    trust: take it although its origin is not known (--trust-engine); what is known to be made for something else is
    refused all the same. Raises EngineError naming what differs, SignatureError for a name that leads elsewhere.
    """
    path, key = inside(folder, engine.file), read_key(folder, engine)
    if not path.is_file():
        raise EngineError(f"{path} is missing")
    if not trust and (key is None or not _is_ours(folder, engine)):
        reason = "missing or not the one made with" if key is None else "not sealed by who starts this"
        raise EngineError(f"{path} is of unknown origin: {engine.key_file} beside it is {reason}")
    found, here = (key.tensorrt, key.gpu, key.graph) if key else (None, None, None), (tensorrt, gpu, graph)
    names = ("TensorRT", "GPU", "graph")
    differences = [f"{name} {a}, here {b}" for name, a, b in zip(names, found, here, strict=True) if a != b]
    if key is not None and differences:
        raise EngineError(f"{path} was made for something else: {'; '.join(differences)}")
    # last, as it reads the whole engine
    if not trust and digest(path) != engine.sha256:
        raise EngineError(f"{path} is not the engine that was built: its content has changed")
    return path


def read_key(folder: Path, engine: EngineFile) -> EngineKey | None:
    """What the key file says, if it is the one that was written with this engine; else None."""
    try:
        document = _read(folder, engine)
        key = _ADAPTER.validate_python(document["made_for"])
        known = (document["cache_key"], document["sha256"]) == (engine.cache_key, engine.sha256)
        # hashed again: what it says it was made for may have been edited
        return key if known and key.hash == engine.cache_key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_ours(folder: Path, engine: EngineFile) -> bool:
    """Whether this user has built the engine that signature.json speaks of; its content is compared elsewhere."""
    try:
        by = _read(folder, engine)["seal"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    # compare_digest raises for text beyond ASCII
    return isinstance(by, str) and by.isascii() and is_sealed(engine.sha256, by)


def _read(folder: Path, engine: EngineFile) -> Any:
    file = inside(folder, engine.key_file)
    if not file.is_file():  # to open a pipe would wait for ever
        raise ValueError(f"{file} is no file")
    if file.stat().st_size > MAX_KEY_BYTES:
        raise ValueError(f"{file} is larger than {MAX_KEY_BYTES >> 20} MiB")
    return json.loads(file.read_text("utf-8"))
