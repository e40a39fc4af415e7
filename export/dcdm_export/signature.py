"""signature.json: what an export folder holds, so that whoever runs the graphs needs no other file to know it.

Comes in: a folder. Goes out: a `Signature`, and the certainty that the files beside it are the ones it speaks of. Every
name is relative to the folder, so a moved folder still loads. Importable without torch and onnx.

What the networks take and give (rows of one image stay together; the batch axis is called `batch` or a multiple of it):

denoiser      latents float32 [B,C,h,w], timestep float32 [B], text float32 [B,T,D], label int64 [B], difficulty
              float32 [B] (negative = none given) -> prediction float32 [B,C,h,w]
vae_decoder   latents float32 [B,C,h,w], scaled as the denoiser works with them -> images float32 [B,3,H,W] in [-1,1],
              in half precision in about that: it does not clip, so that what is not finite shows
text_encoder  token_ids int64 [B,L] -> text float32 [B,T,D]; L = T, or the tokens of two tokenizers side by side, whose
              text ends with the pooled embedding as a row of its own

Inputs and outputs are float32 whatever the precision: a graph in half precision casts inside, at its edges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dcdm_export import places
from dcdm_export.whole_files import whole_files

SIGNATURE_FILE, PARITY_FILE = "signature.json", "parity.json"
SCHEMA = 1
MAX_SIGNATURE_BYTES = 2**25  # 20,000 class names take about one of its 32 MiB
BATCH_AXIS = "batch"
DENOISER, VAE_DECODER, TEXT_ENCODER = "denoiser", "vae_decoder", "text_encoder"
NETWORKS = (DENOISER, VAE_DECODER, TEXT_ENCODER)
Size = Annotated[int, Field(ge=1, le=2**20)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Precision = Literal["fp32", "fp16", "bf16", "fp8"]


class SignatureError(ValueError):
    """The folder does not hold what its signature says, or has no readable signature. file: the one at fault."""

    def __init__(self, message: str, file: Path) -> None:
        super().__init__(message)
        self.file = file


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. dtype: NumPy's name. shape: a number per fixed axis, a name per dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class NetworkFile:
    """One ONNX graph. sha256: full digest of the file and of each external data file, by name.

    shared_calls: 1 = none; k > 1 means that rows i, i+B, ... of a batch of k*B share latents and timestep, and the
    graph computes what comes before the first cross-attention once for them. precision: of weights and arithmetic; fp8
    = of products, the rest in fp16.
    key: hash of everything the graph was made from; the same key means the same graph.
    """

    file: str
    sha256: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: Annotated[int, Field(ge=1, le=1000)]
    precision: Precision
    external_data: tuple[str, ...] = ()
    shared_calls: Annotated[int, Field(ge=1, le=2**10)] = 1
    key: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file, *self.external_data)

    @property
    def hash(self) -> str:
        """One digest for graph and external data: what an engine built from them depends on."""
        return hashlib.sha256("".join(self.sha256[name] for name in self.files).encode()).hexdigest()


@dataclass(frozen=True)
class EngineFile:
    """A TensorRT engine for batches of `batch` images (`shared_calls` rows each), or of up to so many.

    graph: `NetworkFile.hash` of what it was built from. cache_key: hash over TensorRT's version, the GPU, the graph,
    the shapes and the flags it was built with; key_file, JSON beside the engine, spells them out.
    """

    network: str
    file: str
    batch: Size
    graph: str
    cache_key: str
    key_file: str
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """What a sampler must know of the model and cannot read from a graph.

    latent_shape: [C, h, w] at `resolution` pixels per side. mode, tokens: how the encoder's tokens join the text; None
    and 0 for a plain LoRA. text_shape: [T, D] of the text encoding, without difficulty tokens.
    distilled: one call gives the guided prediction. extra_lora: hash and weight of a few-step LoRA in the weights.
    scaling_factor, shift_factor: latents = (posterior mean - shift) * scaling; the decoder graph undoes it by itself.
    """

    class_names: tuple[str, ...]
    resolution: Size
    latent_shape: tuple[Size, Size, Size]
    text_shape: tuple[Size, Size]
    scaling_factor: Finite
    shift_factor: Finite
    prediction_type: str
    mode: str | None
    tokens: Annotated[int, Field(ge=0, le=2**20)]
    base_fingerprint: str
    adapter_hash: str
    lora_scale: Finite
    distilled: bool = False
    extra_lora: str = ""


@dataclass(frozen=True)
class Signature:
    """signature.json. networks: by `denoiser`, `vae_decoder`, `text_encoder`. versions: of the packages that made it.

    parity: the file with the figures of the comparison against PyTorch, in this folder.
    """

    model: ModelFacts
    networks: dict[str, NetworkFile]
    dcdm_version: str
    versions: dict[str, str]
    parity: str = PARITY_FILE
    engines: tuple[EngineFile, ...] = field(default=())
    schema: int = SCHEMA


_ADAPTER = TypeAdapter(Signature)


def write_signature(folder: Path, signature: Signature, *, name: str = SIGNATURE_FILE) -> Path:
    """Writes signature.json whole or not at all: written last, it says that the export is complete."""
    with whole_files(folder) as part:
        (part / name).write_text(json.dumps(as_document(signature), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return folder / name


def read_signature(folder: Path, *, name: str = SIGNATURE_FILE) -> Signature:
    """Raises SignatureError when there is none, when it is damaged, or when a newer dcdm wrote it."""
    file = folder / name
    if not file.is_file():
        raise SignatureError(f"{folder} has no {name}: nothing was exported there, or not to the end", file)
    if file.stat().st_size > MAX_SIGNATURE_BYTES:
        raise SignatureError(f"{file} is larger than {MAX_SIGNATURE_BYTES >> 20} MiB: not a signature", file)
    try:
        document = json.loads(file.read_text("utf-8"))
        # before the types: what a newer dcdm wrote may have other keys, and is not damaged
        if isinstance(document, dict) and document.get("schema") != SCHEMA:
            raise SignatureError(f"{file} has schema {document.get('schema')!r}; this version reads {SCHEMA}", file)
        signature = _ADAPTER.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SignatureError(f"{file} is damaged: {place}: {first['msg']}", file) from error
    except SignatureError:  # which is a ValueError too
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SignatureError(f"{file} is damaged: {error}", file) from error
    _check_names(folder, signature)
    return signature


def as_document(signature: Signature) -> dict[str, object]:
    """The signature as plain JSON values."""
    return _ADAPTER.dump_python(signature, mode="json")


def verify(folder: Path, signature: Signature, networks: Iterable[str] | None = None) -> None:
    """Hashes the files of `networks` (all when None) again. Engines have their own check, before they are loaded.

    Raises SignatureError naming the file: missing, leading out of the folder, or not the one that was exported.
    """
    for name in signature.networks if networks is None else networks:
        if name not in signature.networks:
            known = ", ".join(signature.networks) or "none"
            raise SignatureError(f"{folder} holds no {name}; exported: {known}", folder / SIGNATURE_FILE)
        verify_files(folder, signature.networks[name].sha256)


def verify_files(folder: Path, sha256: Mapping[str, str]) -> None:
    """sha256: digest by file name. Raises SignatureError for the first file that is missing or differs."""
    for name, expected in sha256.items():
        file = inside(folder, name)
        if not file.is_file():
            raise SignatureError(f"{file} is missing: the export in {folder} is not complete", file)
        found = digest(file)
        if found != expected:
            raise SignatureError(
                f"{file} is not the file that was exported: sha256 {found[:12]}…, signature.json says {expected[:12]}…",
                file,
            )


def inside(folder: Path, name: str) -> Path:
    """folder / name. Raises SignatureError when the name, or a link behind it, leads out of the folder."""
    plain = PurePosixPath(name)
    # backslash and colon lead elsewhere on Windows, and folders are moved
    if not name or plain.is_absolute() or ".." in plain.parts or "\\" in name or ":" in name or "\0" in name:
        where = folder / SIGNATURE_FILE
        raise SignatureError(f"{name!r} in {where} is not a file name inside that folder", where)
    file = folder / name
    try:
        places.inside(folder, name)
    except places.OutsideError as error:
        raise SignatureError(f"{file}: {error}; files must lie in the export folder", file) from error
    return file


def digest(file: Path) -> str:
    """SHA-256 of a file, all 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_names(folder: Path, signature: Signature) -> None:
    """Every file name, and that each network's files all have a digest."""
    for name, network in signature.networks.items():
        # a file without a digest could be another one by now
        if set(network.files) != set(network.sha256):
            file = folder / SIGNATURE_FILE
            raise SignatureError(f"{file} is damaged: the digests of {name} are not those of its files", file)
        for file_name in network.files:
            inside(folder, file_name)
    for engine in signature.engines:
        inside(folder, engine.file)
        inside(folder, engine.key_file)
    inside(folder, signature.parity)
