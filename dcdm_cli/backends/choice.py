"""Which backend runs the network, and why: the one place that decides.

`auto` takes the fastest that fits and passes over the rest with the reason. An explicit request that cannot be met is
an error that names the remedy. Exported files are used only when they were made from this adapter, at this scale and
precision, and are unchanged since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.backends.cpu_streams import Streams, plan_streams
from dcdm_cli.backends.exported import ExportedDenoiser
from dcdm_cli.errors import CapabilityError, MismatchError, NotFoundError, UsageError
from dcdm_cli.model.adapter import AdapterInfo, adapter_hash
from dcdm_cli.model.export_folder import decodes_as, open_export, signature_problems
from dcdm_cli.model.few_steps import identity_of
from dcdm_cli.model.latents import Decode
from dcdm_cli.run.precision import settle_precision
from dcdm_cli.run.settings import GenerateConfig
from dcdm_export.signature import DENOISER, VAE_DECODER, ModelFacts, NetworkFile, Signature, verify

AGAIN = "dcdm export"


@dataclass(frozen=True)
class Wanted:
    """What the run needs of a backend. export: the run's export folder, None = not to be used.

    calls: the numbers of network calls that its steps make; more than one number with a guidance interval.
    """

    adapter: Path
    info: AdapterInfo
    config: GenerateConfig
    device: str
    export: Path | None
    calls: frozenset[int]


@dataclass(frozen=True)
class Opened:
    """An exported denoiser, ready to run. decode: the exported decoder; None = use torch's, and remark says why.

    half_decoder: it computes in half precision, so that its images may be no numbers.
    """

    denoiser: Denoiser
    decode: Decode | None = None
    half_decoder: bool = False
    remark: str = ""


@dataclass(frozen=True)
class BackendChoice:
    """opened None: use the torch backend. reason: for people and the record."""

    opened: Opened | None
    reason: str


def choose_backend(wanted: Wanted) -> BackendChoice:
    """The backend asked for, or with `auto` the first one for the device that can be opened, else torch.

    Raises CapabilityError, NotFoundError or MismatchError when an explicit request cannot be met, UsageError when it
    contradicts --compile.
    """
    asked, kind = wanted.config.backend, wanted.device.partition(":")[0]
    if asked not in ("auto", "torch"):
        _check_request(asked, kind, wanted)
        return _chosen(_KINDS[asked].open(wanted), "asked for")
    if asked == "torch" or wanted.config.compile:
        return BackendChoice(None, "asked for" if asked == "torch" else "--compile is for torch")
    refused: dict[str, list[str]] = {}  # reason -> names
    for name, entry in _KINDS.items():
        if kind not in entry.auto_on:
            continue
        try:
            return _chosen(entry.open(wanted), *_told(refused), entry.advantage)
        except (CapabilityError, NotFoundError, MismatchError) as error:
            # by reason: what one exported backend lacks the other may lack too, and it is said once
            refused.setdefault(error.message, []).append(name)
    return BackendChoice(None, "; ".join(_told(refused)) or f"the only one that runs on {kind}")


def usable_export(wanted: Wanted, networks: tuple[str, ...]) -> Signature:
    """The signature of the run's export, once it fits the adapter and the settings; the files of `networks` verified.

    Raises NotFoundError when there is none, MismatchError when it was made from or for something else.
    """
    folder = wanted.export
    if folder is None:
        raise NotFoundError("nothing is exported for this adapter", f"make it first: {AGAIN}")
    signature = open_export(
        folder,
        adapter_hash=adapter_hash(wanted.adapter),
        lora_scale=wanted.config.lora_scale,
        networks=networks,
        distilled=wanted.info.distilled is not None,
        extra_lora=identity_of(wanted.config),
    )
    _check_facts(folder, signature.model, wanted.info)
    _check_denoiser(folder, signature, wanted)
    return signature


def _chosen(opened: Opened, *reasons: str) -> BackendChoice:
    return BackendChoice(opened, "; ".join(reason for reason in (*reasons, opened.remark) if reason))


def _told(refused: dict[str, list[str]]) -> list[str]:
    return [f"not {' or '.join(names)}: {reason}" for reason, names in refused.items()]


def _check_request(asked: str, kind: str, wanted: Wanted) -> None:
    if wanted.config.compile:
        raise UsageError(f"--compile has no effect on the {asked} backend", "leave it out, or use --backend torch")
    if kind not in _KINDS[asked].runs_on:
        raise CapabilityError(
            f"the {asked} backend does not run on {wanted.device}", f"use --device {_KINDS[asked].runs_on[0]}"
        )


def _check_facts(folder: Path, model: ModelFacts, info: AdapterInfo) -> None:
    encoder = info.encoder
    expected = {
        "base model": (model.base_fingerprint, info.base_fingerprint),
        "class names": (model.class_names, info.class_names),
        "resolution": (model.resolution, info.resolution),
        "token mode": (model.mode, encoder.mode if encoder else None),
        "number of difficulty tokens": (model.tokens, encoder.tokens if encoder else 0),
    }
    for what, (theirs, ours) in expected.items():
        if theirs != ours:
            raise MismatchError(f"{folder} was exported with another {what} than the adapter's", AGAIN, file=folder)


def _check_denoiser(folder: Path, signature: Signature, wanted: Wanted) -> None:
    denoiser, precision = signature.networks[DENOISER], settle_precision(wanted.config.precision, wanted.device)
    if denoiser.precision != precision:
        raise MismatchError(
            f"{folder} was exported in {denoiser.precision}, and generation is set to {precision}",
            f"{AGAIN} --precision {precision}, or dcdm generate --precision {denoiser.precision}",
            file=folder,
        )
    # with a guidance interval the numbers of calls are two, and no graph that shares serves both
    if denoiser.shared_calls != 1 and {denoiser.shared_calls} != wanted.calls:
        made = " and ".join(map(str, sorted(wanted.calls)))
        raise MismatchError(
            f"{folder} was exported for {denoiser.shared_calls} network calls per step; these settings make {made}",
            f"{AGAIN} with the guidance settings of this run",
            file=folder,
        )


def _open_openvino(wanted: Wanted) -> Opened:
    from dcdm_cli.backends.ov_backend import OvNetwork, import_openvino

    # first: where it is missing, the export's files need not be hashed
    import_openvino()
    images = wanted.config.batch_size

    def build(folder: Path, network: NetworkFile, streams: Streams) -> Callable[..., Any]:
        return OvNetwork(folder, network, streams, images)

    return _open_graphs("openvino", wanted, build)


def _open_onnxruntime(wanted: Wanted) -> Opened:
    from dcdm_cli.backends.ort_backend import OrtNetwork

    def build(folder: Path, network: NetworkFile, streams: Streams) -> Callable[..., Any]:
        return OrtNetwork(folder, network, wanted.device, streams, spinning=wanted.config.spinning)

    return _open_graphs("onnxruntime", wanted, build)


def _open_tensorrt(wanted: Wanted) -> Opened:
    """Engines have their own check, which covers the graph they were built from."""
    from dcdm_cli.backends.trt_backend import open_tensorrt

    signature = usable_export(wanted, ())
    assert wanted.export is not None
    trust = wanted.config.trust_engine
    denoiser, decode = open_tensorrt(wanted.export, signature, wanted.device, trust=trust)
    decoder, remark = _usable_decoder(signature, wanted.config)
    if decoder is None or decode is None:
        return Opened(denoiser, remark=remark or "torch decodes, as no engine for that is there")
    return Opened(denoiser, decode, decoder.precision != "fp32")


def _open_graphs(
    name: str, wanted: Wanted, build: Callable[[Path, NetworkFile, Streams], Callable[..., Any]]
) -> Opened:
    """Denoiser and decoder of the export, each built by `build`."""
    signature = usable_export(wanted, (DENOISER,))
    folder, threads = wanted.export, torch.get_num_threads()
    assert folder is not None
    decoder, remark = _usable_decoder(signature, wanted.config)
    if decoder is not None:
        # only where it is to run: a decoder that torch stands in for is not read
        with signature_problems():
            verify(folder, signature, (VAE_DECODER,))
    network = signature.networks[DENOISER]
    _, height, width = signature.model.latent_shape
    streams = plan_streams(height * width, network.shared_calls, threads)
    denoiser = ExportedDenoiser(build(folder, network, streams), name, wanted.device, network.shared_calls)
    if decoder is None:
        return Opened(denoiser, remark=remark)
    decode = build(folder, decoder, plan_streams(DECODER_CELLS * height * width, 1, threads))
    return Opened(denoiser, decode, decoder.precision != "fp32")


def _usable_decoder(signature: Signature, config: GenerateConfig) -> tuple[NetworkFile | None, str]:
    """The exported decoder; or None, and why torch decodes: an export without one, or in another precision than set."""
    decoder, wanted = signature.networks.get(VAE_DECODER), config.vae_precision
    if decoder is None:
        return None, "torch decodes, as the export holds no decoder"
    if not decodes_as(wanted, decoder.precision):
        return None, f"torch decodes in {wanted}, as the export's decoder is in {decoder.precision}"
    return decoder, ""


DECODER_CELLS = 4  # a decoder's tensors grow to so many times the latents' cells, at about the UNet's width


@dataclass(frozen=True)
class _Kind:
    """auto_on: devices whose `auto` tries it, in the table's order; on CUDA, ONNX Runtime is slower than torch."""

    open: Callable[[Wanted], Opened]
    runs_on: tuple[str, ...]
    auto_on: tuple[str, ...]
    advantage: str


_KINDS = {
    "tensorrt": _Kind(_open_tensorrt, ("cuda",), ("cuda",), "engines for this GPU are there"),
    "openvino": _Kind(_open_openvino, ("cpu",), ("cpu",), "the fastest on a CPU"),
    "onnxruntime": _Kind(_open_onnxruntime, ("cpu", "cuda"), ("cpu",), "faster than torch on a CPU"),
}
