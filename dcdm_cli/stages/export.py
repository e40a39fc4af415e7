"""Exports the fused network, checked against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli import __version__
from dcdm_cli.errors import CapabilityError, DcdmError, MismatchError, NumericalError, UsageError
from dcdm_cli.run import one_off
from dcdm_cli.run.keeping import refuse_replacing
from dcdm_cli.run.precision import settle_precision
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import Config
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.signals import stopped_at_once
from dcdm_cli.stages.devices import settle_generation
from dcdm_cli.stages.evaluation_data import stale_adapter
from dcdm_cli.stages.fp8 import check_quantizer, judge_fp8, sampled_calls
from dcdm_cli.stages.given import few_steps
from dcdm_cli.stages.jobs import open_job

if TYPE_CHECKING:
    from dcdm_export.orders import EngineOrder, Order
    from dcdm_export.signature import Signature


RECORDED = ("torch", "onnx", "onnxscript", "diffusers", "transformers")
OF_ENGINES = ("fixed_batch", "optimization_level", "tf32", "refit")  # settings that no graph depends on
KEPT = "finished networks and engines are kept"


def run_export(session: Session) -> StageRecord:
    run = session.run
    run.create()
    session = settle_generation(session, "export")
    with run.lock("dcdm export"):
        for warning in stale_adapter(run):
            session.console.warn(warning)
        engines = _engine_order(session.config, run.cache)
        # engines are for one release and one kind of GPU: another of them makes the stage stale
        tensorrt = f"{engines.trt.__version__} on {engines.gpu.name}" if engines is not None else ""
        stage = export_stage(session, tensorrt)
        _settled_opset(session)  # before anybody is asked to replace what is there
        if not session.force:
            _keep_what_took_long(run, stage)
        record, done = run.run(
            stage, lambda: _export_network(session, engines), force=session.force, intact=lambda: _is_intact(session)
        )
    if not done:
        session.console.note("export: nothing changed, skipped (--force runs it again)")
    return record


def _keep_what_took_long(run: RunFolder, stage: Stage) -> None:
    """Raises MismatchError where graphs or engines that took long would be dropped. The first engines, those for other
    batches, and graphs alone leave what is there."""
    record = run.record("export")
    if record is None:
        return
    # another batch adds engines and keeps those that still fit
    free, inputs = ("target", "batch"), dict(stage.inputs)
    if not record.results.get("engines"):
        free += OF_ENGINES
        inputs.pop("tensorrt", None)  # there are no engines to lose
    same = {name: record.config[name] for name in free if name in record.config}
    inputs = {name: id for name, id in record.inputs.items() if name == "tensorrt"} | inputs
    kept = replace(stage, config=stage.config | same, inputs=inputs)
    refuse_replacing(run, kept, "exporting with other settings")


def export_stage(session: Session, tensorrt: str = "") -> Stage:
    """Of a session whose precision is settled. tensorrt: version and GPU that engines are for."""
    config = session.config
    inputs = session.run.adapter_ids() | ({"tensorrt": tensorrt} if tensorrt else {})
    settings = {
        **fingerprint(config.export),
        "precision": config.generate.precision,
        "lora_scale": config.generate.lora_scale,
        "shared_calls": shared_calls(session),
    } | few_steps(session)
    return Stage("export", settings, inputs, others(config.export), (*session.run.weights, *session.run.base_files()))


def shared_calls(session: Session) -> int:
    """As set, or the number of network calls that a step of this run makes; 1, any number, where that varies."""
    from dcdm_cli.generation.guidance import guidance_of

    plain = session.run.require("finetune").config.get("conditioning") == "none"
    generate = session.config.generate
    return session.config.export.shared_calls or guidance_of(generate, plain=plain).shared_calls(generate.steps)


def _export_network(session: Session, engines: EngineOrder | None) -> Outcome:
    from dcdm_cli.files import hash_json, storage_errors
    from dcdm_export.finished import read_parity
    from dcdm_export.folder import make_export

    run = session.run
    # in the run folder, and so on one disk with the export, whose place it takes by renaming
    work = run.cache / "export"
    # a stop comes at once: networks and engines are finished one by one, so that one is lost at most
    with _export_problems(work), storage_errors(run.export), stopped_at_once(KEPT):
        order, forget = _order(session, engines), partial(run.forget, "export")  # the record is of what was there
        signature = make_export(order, run.export, work, afresh=session.force, before_swap=forget)
    results = _results(signature, read_parity(run.export), run.export)
    # `forget` has dropped the old record: held against that, the new signature would count as damaged
    if session.config.generate.precision == "fp8":
        results["fp8"] = judge_fp8(session, open_job(session))
    fingerprint = hash_json([network.sha256 for network in signature.networks.values()])
    also, listed = [run.export / "parity.json"], [run.export, run.cache]  # the signature has the networks' hashes
    return Outcome([run.export / "signature.json"], fingerprint, results, also=also, listed=listed)


def _settled_opset(session: Session, gpu: bool = False) -> int:
    """Raises UsageError for one that does not serve the precision."""
    from dcdm_export.onnx_graph import ExportError, check_opset, default_opset

    precision = settle_precision(session.config.generate.precision, "cpu")  # settled already
    opset = session.config.export.opset or default_opset(precision, gpu=gpu)
    try:
        check_opset(precision, opset)
    except ExportError as error:
        raise UsageError(str(error), "leave --opset out to get the one that fits") from error
    return opset


def _order(session: Session, engines: EngineOrder | None) -> Order:
    """Loads base and adapter in float32: that is the reference, whatever the precision of the graphs."""
    from dcdm_cli.files import check_room
    from dcdm_cli.generation.engine import decoder_precision
    from dcdm_cli.generation.guidance import check_guidance
    from dcdm_cli.model.adapter import read_adapter
    from dcdm_cli.model.exported import export_requests, model_facts
    from dcdm_cli.model.few_steps import check_few_steps, extra_lora_of
    from dcdm_cli.model.fused import load_fused
    from dcdm_export.orders import Order

    scale, adapter, job = session.config.generate.lora_scale, session.run.adapter, open_job(session)
    gpu = job.device.startswith("cuda") or engines is not None
    precision = settle_precision(session.config.generate.precision, "cpu")  # settled already
    opset = _settled_opset(session, gpu)
    if precision == "fp8":
        check_quantizer()

    def progress(what: str, done: int, total: int) -> None:
        job.progress(what, done, total)
        job.stop_if_asked(KEPT)

    # what is refused is refused before weights are loaded
    check_guidance(adapter, read_adapter(adapter), session.config.generate)
    check_few_steps(session.config.generate)
    extra = extra_lora_of(session.config.generate)
    model = load_fused(adapter, lora_scale=scale, extra=extra)
    size = {"fp32": 4, "fp8": 6}.get(precision, 2)  # in fp8 it lies in float32 beside it for a while
    weights = sum(parameter.numel() for parameter in model.network.parameters())
    check_room(session.run.export, size * weights, "the exported networks")
    facts = model_facts(model, adapter, scale, extra.identity if extra else "")
    versions = {"dcdm": __version__, **{name: metadata.version(name) for name in RECORDED}}
    device = job.device if job.device.startswith("cuda") else "cpu"
    # a VAE that is known to leave fp16's range (Stable Diffusion XL's) gets bf16 or fp32
    decoder = decoder_precision(session.config.generate, "cuda" if gpu else "cpu", overflows=model.base.overflows)
    calls = partial(sampled_calls, session, job)
    requests = export_requests(model, facts, precision, opset, versions, shared_calls(session), decoder, calls)
    return Order(facts, requests, versions, __version__, engines, device, progress, session.console.note)


def _engine_order(settings: Config, cache: Path) -> EngineOrder | None:
    """None for graphs alone. Raises CapabilityError before anything slow when engines cannot be built here.

    TensorRT builds on, and for, the current GPU.
    """
    config, device = settings.export, settings.device
    if config.target == "onnx":
        return None
    from dcdm_cli.backends.trt_backend import cuda_gpu, engine_opener, tensorrt_problems
    from dcdm_cli.workers.devices import use_device
    from dcdm_export.engine_key import EngineSettings
    from dcdm_export.fp8 import FIRST_CAPABILITY
    from dcdm_export.orders import EngineOrder
    from dcdm_export.signature import DENOISER, VAE_DECODER
    from dcdm_export.trt_engine import import_tensorrt

    with tensorrt_problems():
        use_device(device)
        trt, gpu = import_tensorrt(), cuda_gpu()
    lacks = {"bf16": (8.0, "bfloat16"), "fp8": (FIRST_CAPABILITY, "8-bit float")}.get(settings.generate.precision)
    if lacks and float(gpu.compute_capability) < lacks[0]:
        raise CapabilityError(f"{gpu.name} has no {lacks[1]} arithmetic", "use --precision fp16")
    how = EngineSettings(config.fixed_batch, config.optimization_level, config.tf32, config.refit)
    batches = {DENOISER: config.batch, VAE_DECODER: decoder_batches(config.batch, settings.generate.decode_batch)}
    return EngineOrder(
        trt,
        gpu,
        batches,
        how,
        cache / "tensorrt.timing",
        timed=one_off.built,
        open=engine_opener(trt, gpu, device if device.startswith("cuda") else "cuda"),
        attended=frozenset({DENOISER}),  # warned of where TensorRT has fused none of its attention
    )


def decoder_batches(batches: Sequence[int], at_once: int) -> tuple[int, ...]:
    """The batches that decoding in chunks of `at_once` images can fill; the smallest where it can fill none."""
    return tuple(batch for batch in batches if batch <= at_once) or (min(batches),)


def _is_intact(session: Session) -> bool:
    """False when a finished export has changed, or a decoder of another precision; says what is wrong."""
    from dcdm_cli.model.export_folder import decodes_as
    from dcdm_export.signature import VAE_DECODER, SignatureError, read_signature, verify, verify_files

    run = session.run
    try:
        signature = read_signature(run.export)
        verify(run.export, signature)
        verify_files(run.export, {engine.file: engine.sha256 for engine in signature.engines})
    except SignatureError as error:
        session.console.note(f"{error}; what is wrong is made again")
        return False
    # no setting of the stage: another precision of the decoder exports it anew, and it alone
    wanted, decoder = session.config.generate.vae_precision, signature.networks.get(VAE_DECODER)
    if decoder is not None and not decodes_as(wanted, decoder.precision):
        session.console.note(f"the decoder is in {decoder.precision}, and {wanted} is set; it is exported again")
        return False
    return True


@contextmanager
def _export_problems(work: Path) -> Iterator[None]:
    """dcdm_export's exceptions as errors with a remedy."""
    from dcdm_export.engine_key import EngineError
    from dcdm_export.onnx_graph import ExportError
    from dcdm_export.parity import ParityError
    from dcdm_export.signature import VAE_DECODER, SignatureError

    try:
        yield
    except ParityError as error:
        file = work / "parity.json"
        of_decoder = error.parity.network.startswith(VAE_DECODER)
        other = "fp16" if error.parity.precision == "fp8" else "fp32"
        remedy = "--set generate.vae_precision=fp32" if of_decoder else f"--precision {other}"
        raise NumericalError(str(error), f"use {remedy}; the figures are in {file}", file=file) from error
    except EngineError as error:
        raise DcdmError(str(error), "use --target onnx, or another --opset or --precision") from error
    except ExportError as error:
        raise DcdmError(str(error), "try another --opset, or --precision fp32") from error
    except SignatureError as error:
        raise MismatchError(str(error), f"dcdm export again: {KEPT}", file=error.file) from error


def _results(signature: Signature, parity: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One entry per network and engine, for the record, --json and the table."""

    def mib(*names: str) -> float:
        return round(sum((folder / name).stat().st_size for name in names) / 2**20, 2)

    networks = [
        {
            "name": name,
            "file": network.file,
            "mib": mib(*network.files),
            "precision": network.precision,
            "opset": network.opset,
            "parity": parity[name]["status"],
            # no cases where this machine cannot run the graph, as bf16 without CUDA
            "max_abs": max((case["max_abs"] for case in parity[name]["cases"]), default=None),
            "mean_abs": max((case["mean_abs"] for case in parity[name]["cases"]), default=None),
            "relative": max((case["relative"] for case in parity[name]["cases"]), default=None),
        }
        for name, network in signature.networks.items()
    ]
    engines = [
        {
            "name": engine.network,
            "file": engine.file,
            "mib": mib(engine.file),
            "batch": engine.batch,
            "parity": parity.get(engine.file, {}).get("status", "not checked"),
            "fused_attention": parity.get(engine.file, {}).get("fused_attention"),
            "refitted": parity.get(engine.file, {}).get("refitted", False),
        }
        for engine in signature.engines
    ]
    return {"networks": networks, "engines": engines}
