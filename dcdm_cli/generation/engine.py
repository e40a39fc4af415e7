"""From an adapter folder to images: the fused network, its sampler settings, and batches of rendered plan rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.backends.choice import Opened, Wanted, choose_backend
from dcdm_cli.backends.exported import cores_left_to
from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions, compiled
from dcdm_cli.errors import CapabilityError, OutOfMemoryError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.generation.guidance import Guidance, check_guidance, guidance_of
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.prompts import PromptCache
from dcdm_cli.generation.sampler import Conditioning, Start, sample
from dcdm_cli.generation.starts import Starts
from dcdm_cli.model.adapter import AdapterInfo, adapter_hash, read_adapter
from dcdm_cli.model.base import DTYPES, BaseModel, encode_text, load_base
from dcdm_cli.model.few_steps import STOCHASTIC, check_few_steps, extra_lora_of, identity_of
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.latents import Decode, RetriedDecode, decode_latents, released, torch_decoder
from dcdm_cli.model.schedule import Sampler, noise_of, noise_streams, sampling_scheduler, tail_steps
from dcdm_cli.run import one_off
from dcdm_cli.run.precision import Settled, beside_fp8, settle_precision
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import RESULT, fingerprint
from dcdm_cli.run.settings import GenerateConfig

LOOK_AHEAD = 4  # batches whose captions are known early, so that they are encoded some at a time
_MEMORY_WORDS = ("out of memory", "allocate memory", "bad_alloc", "bad allocation")


@dataclass
class BatchLimit:
    """The largest batch that is known to fit, once one did not; kept for the engine's whole life."""

    images: int | None = None


@dataclass(frozen=True)
class Engine:
    """A denoiser with everything around it. generator: hash of base, adapter and sampler settings; not of the backend.

    reason: why this backend. starts: latents of the images that rows name as their sources; None = there are none.
    """

    denoiser: Denoiser
    decode: Decode
    base: BaseModel
    info: AdapterInfo
    config: GenerateConfig
    prompts: PromptCache
    generator: str
    reason: str
    batch_limit: BatchLimit = field(default_factory=BatchLimit)
    starts: Starts | None = None

    @property
    def guidance(self) -> Guidance:
        return guidance_of(self.config, plain=self.info.encoder is None)

    @cached_property
    def scheduler(self) -> Sampler:
        """One for all batches: `set_timesteps` makes it forget the last one."""
        whole = self.config.strength == 1
        return sampling_scheduler(self.config.scheduler, self.base.scheduler_config, whole=whole)

    @property
    def batch_size(self) -> int:
        """Images at once: as set, or what fits."""
        return min(self.config.batch_size, self.batch_limit.images or self.config.batch_size)


def sampler_settings(config: GenerateConfig) -> dict[str, Any]:
    """The settings that change what comes out, and so the calibration. What is off (None) is absent: calibrations from
    before a setting existed still hold. So are strength 1, which is noise alone, and guidance by calls."""
    settings = {name: value for name, value in fingerprint(config, RESULT).items() if value is not None}
    if config.strength == 1:
        del settings["strength"]
    if config.guidance == "calls":
        del settings["guidance"]
    if config.extra_lora:
        # what is in the file, not where it lies: it may be moved
        settings["extra_lora"] = identity_of(config)
    return settings


def sampler_warnings(config: GenerateConfig) -> list[str]:
    """What in the settings is known to flatten difficulty or to fake it (measured in docs/results/speed.md)."""
    warnings = []
    if config.scheduler == "unipc" and config.clip_range is None:
        warnings.append(
            "unipc without generate.clip_range can blow samples up, which looks like difficulty: read the measured "
            "difficulty together with the label agreement, or set --clip-range"
        )
    if config.guidance_interval is not None:
        warnings.append(
            f"guidance only from {config.guidance_interval[0]:g} to {config.guidance_interval[1]:g} of the schedule "
            "weakens the control of difficulty; it is calibrated apart from full guidance"
        )
    return warnings


def open_engine(adapter: Path, config: GenerateConfig, device: str, *, export: Path | None = None) -> Engine:
    """Picks the backend and loads what it needs of the base the adapter was trained on.

    export: the folder of exported networks that may be used. Raises MismatchError when the base's weights are not those
    the adapter was trained on, UsageError for a strength of less than a step, and what `choose_backend` raises.
    """
    if not tail_steps(config.steps, config.strength):
        raise UsageError(
            f"generate.strength = {config.strength:g} of {config.steps} steps leaves not one of them",
            f"raise it to {1 / config.steps:.3g} or more, or take more --steps",
        )
    check_few_steps(config)
    # before it is hashed into the generator: `auto` means something else on another device
    config = config.model_copy(update={"precision": settle_precision(config.precision, device)})
    info = read_adapter(adapter)
    check_guidance(adapter, info, config)
    guidance = guidance_of(config, plain=info.encoder is None)
    choice = choose_backend(Wanted(adapter, info, config, device, export, guidance.call_counts(config.steps)))
    if choice.opened is None:
        _check_torch_precision(config, choice.reason)
        options = TorchOptions(guidance.shared_calls(config.steps), config.compile, config.cuda_graphs)
        parts = _torch_parts(adapter, config, device, options)
    else:
        parts = _exported_parts(choice.opened, info, config, device)
    # of a single draw neither changes an image: it stays the same generator
    draws = [config.attempts, config.tolerance] if config.attempts > 1 else []
    draws += [config.check, config.check_model] if config.check else []
    made_from = [adapter_hash(adapter), info.base_fingerprint, sampler_settings(config), config.precision, *draws]
    prompts = PromptCache(lambda captions: encode_text(parts.base, captions), parts.denoiser.device)
    generator = hash_json(made_from)[:16]
    return Engine(parts.denoiser, parts.decode, parts.base, info, config, prompts, generator, choice.reason)


def _check_torch_precision(config: GenerateConfig, reason: str) -> None:
    if config.precision == "fp8":
        raise CapabilityError(
            f"torch does not compute in fp8, and it is the backend ({reason})",
            "export the network first: dcdm export --precision fp8, or use --precision auto",
        )


@dataclass(frozen=True)
class _Parts:
    denoiser: Denoiser
    decode: Decode
    base: BaseModel


def _torch_parts(adapter: Path, config: GenerateConfig, device: str, options: TorchOptions) -> _Parts:
    extra = extra_lora_of(config)
    fused = load_fused(adapter, precision=config.precision, lora_scale=config.lora_scale, device=device, extra=extra)
    decode = _torch_decoder(fused.base, config, device, compile=options.compile)
    return _Parts(TorchDenoiser(fused.network, device, options), decode, fused.base)


def _torch_decoder(base: BaseModel, config: GenerateConfig, device: str, *, compile: bool = False) -> Decode:
    dtype = DTYPES[decoder_precision(config, device, overflows=base.overflows)]
    return torch_decoder(base.vae, dtype, partial(compiled, device=device) if compile else None)


def decoder_precision(config: GenerateConfig, device: str, *, overflows: bool = False) -> Settled:
    """Of the VAE's decoder: as set, or as the network's on a GPU and fp32 on a CPU, which halves slow down.

    overflows: it leaves the range of fp16, so bf16 stands for that where the device computes it fast, else fp32.
    """
    wanted = config.vae_precision
    if wanted == "auto":
        wanted = "fp32" if device == "cpu" else beside_fp8(config.precision, device)
    if wanted != "fp16" or not overflows:
        return wanted
    # asked as training asks: that takes bf16, and only where the device computes it fast
    return "bf16" if settle_precision("auto", device, training=True) == "bf16" else "fp32"


def _exported_parts(opened: Opened, info: AdapterInfo, config: GenerateConfig, device: str) -> _Parts:
    """Text encoder and schedule of the base, without the weights that the exported files hold."""
    hollow = ("unet",) if opened.decode is None else ("unet", "vae")
    load = partial(load_base, info.base, **info.place, device=device)
    model = load(dtype=beside_fp8(config.precision, device), hollow=hollow)
    if opened.decode is None:
        return _Parts(opened.denoiser, _torch_decoder(model, config, device), model)
    if not opened.half_decoder:
        return _Parts(opened.denoiser, opened.decode, model)
    exact = cache(lambda: torch_decoder(load(hollow=("unet",)).vae))  # loaded when an image overflows, which few do
    return _Parts(opened.denoiser, RetriedDecode(opened.decode, exact), model)


def render(engine: Engine, rows: Sequence[PlanRow], job: Job) -> Iterator[tuple[Sequence[PlanRow], np.ndarray]]:
    """Batches of plan rows with their images, uint8 [B, H, W, 3]. An image depends on its row alone.

    Raises what `draw` raises.
    """
    start = 0
    while start < len(rows):
        images = draw(engine, rows[start : start + LOOK_AHEAD * engine.config.batch_size], job)
        yield rows[start : start + len(images)], images
        # as many as were made: the rest was looked at ahead, or found no room in memory
        start += len(images)
        job.progress("generating", start, len(rows))


def draw(engine: Engine, rows: Sequence[PlanRow], job: Job) -> np.ndarray:
    """Images uint8 [B, H, W, 3] of the first rows, as many as are made at once. The others are known to come.

    When memory runs out the batch is halved, for good. Raises OutOfMemoryError when not even one image fits, and
    InterruptedRunError when asked to stop, which it looks for after each step: a batch may take minutes.
    """
    while True:
        clock = time.monotonic()
        images = _try_batch(engine, rows, job)
        if images is not None:
            one_off.rendered(time.monotonic() - clock, len(images))
            return images
        # a fixed batch was full, however few its rows
        _halve(engine, engine.batch_size if engine.denoiser.fixed_batch else min(engine.batch_size, len(rows)), job)


def _try_batch(engine: Engine, rows: Sequence[PlanRow], job: Job) -> np.ndarray | None:
    """The images of the next batch, or None when memory ran out. Nothing of the attempt is kept then."""
    try:
        return _render_batch(engine, rows[: engine.batch_size], rows[engine.batch_size :], job)
    except Exception as error:  # torch, ONNX Runtime, OpenVINO and TensorRT each have their own kind
        if not _is_out_of_memory(error):
            raise
    # out here: inside of the handler the error's traceback would still hold the tensors
    released(engine.denoiser)
    released(engine.decode)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _halve(engine: Engine, failed: int, job: Job) -> None:
    if failed == 1:
        raise OutOfMemoryError(
            f"out of memory on {engine.denoiser.device} with a batch of one image",
            "use --precision fp16, a smaller --decode-batch, or a device with more memory",
        )
    engine.batch_limit.images = failed // 2
    job.note(f"out of memory with a batch of {failed} images; going on with {failed // 2} (--batch-size)")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error).lower() for words in _MEMORY_WORDS
    )


def _render_batch(engine: Engine, rows: Sequence[PlanRow], coming: Sequence[PlanRow], job: Job) -> np.ndarray:
    """Fills a short batch up where another size would have to be compiled."""
    missing = engine.batch_size - len(rows) if engine.denoiser.fixed_batch else 0
    padded = [*rows, *[rows[-1]] * missing]
    device, side = engine.denoiser.device, engine.info.resolution // engine.base.latent_size
    # a stream first gives the noise that its image begins from, then what `lcm` and `tcd` add at each step
    streams = noise_streams([row.seed for row in padded])
    conditioning = Conditioning(
        text=engine.prompts.get([row.caption for row in padded], (row.caption for row in coming)),
        label=torch.tensor([row.label for row in padded], device=device),
        difficulty=torch.tensor([row.requested_difficulty for row in padded], dtype=torch.float32, device=device),
        null_text=engine.prompts.get([engine.config.negative_prompt]),
        start=_start(engine, padded),
        streams=streams if engine.config.scheduler in STOCHASTIC else None,
    )
    shape = (engine.base.vae.config["latent_channels"], side, side)
    with cores_left_to(engine.denoiser):
        latents = sample(
            engine.denoiser,
            engine.scheduler,
            noise_of(streams, shape),
            conditioning,
            engine.guidance,
            steps=engine.config.steps,
            clip_range=engine.config.clip_range,
            on_step=lambda _: job.stop_if_asked("images that are not finished are made anew next time"),
        )
        # without the rows that only filled the batch up: decoding is the memory peak
        return decode_latents(engine.decode, latents[: len(rows)], engine.config.decode_batch)


def _start(engine: Engine, rows: Sequence[PlanRow]) -> Start | None:
    if engine.config.strength == 1:
        return None
    assert engine.starts is not None, "whoever opens an engine for less than strength 1 gives it the latents"
    return Start(torch.from_numpy(engine.starts.of(rows)), engine.config.strength)
