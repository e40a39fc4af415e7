"""From an adapter folder to images: the fused network, its sampler settings, and batches of rendered plan rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.backends.torch_backend import TorchDenoiser
from dcdm_cli.config import GenerateConfig
from dcdm_cli.errors import MismatchError
from dcdm_cli.files import hash_json
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.sampler import Conditioning, Guidance, sample
from dcdm_cli.job import Job
from dcdm_cli.model.adapter import AdapterInfo, adapter_hash, load_encoder, read_adapter
from dcdm_cli.model.base import BaseModel, encode_text, load_base
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.latents import decode_latents
from dcdm_cli.model.lora import load_lora
from dcdm_cli.model.schedule import sampling_scheduler, seeded_noise


@dataclass(frozen=True)
class Engine:
    """A denoiser with everything around it. generator: hash of base, adapter and sampler settings."""

    denoiser: Denoiser
    base: BaseModel
    info: AdapterInfo
    config: GenerateConfig
    generator: str
    reason: str

    @property
    def guidance(self) -> Guidance:
        """A plain LoRA has no difficulty term: one scale for both makes it two calls."""
        text, difficulty = self.config.text_guidance, self.config.difficulty_guidance
        return Guidance(text, text if self.info.encoder is None else difficulty)


def sampler_settings(config: GenerateConfig) -> dict[str, Any]:
    """The settings that change what comes out, and so the calibration; batch sizes and formats do not."""
    names = (
        "scheduler",
        "steps",
        "text_guidance",
        "difficulty_guidance",
        "lora_scale",
        "clip_range",
        "negative_prompt",
    )
    return {name: getattr(config, name) for name in names}


def open_engine(adapter: Path, config: GenerateConfig, device: str, *, base: str | None = None) -> Engine:
    """Loads the base the adapter was trained on (or `base`), fuses the LoRA, and picks the backend.

    Raises MismatchError when the base's weights are not those the adapter was trained on.
    """
    info = read_adapter(adapter)
    model = load_base(base or info.base, revision=info.revision, dtype=config.precision, device=device)
    if config.precision == "fp32" and model.fingerprint != info.base_fingerprint:
        raise MismatchError(
            f"the base model {model.source!r} is not the one this adapter was trained on",
            "fine-tune again: dcdm finetune",
        )
    load_lora(model.unet, adapter, config.lora_scale)
    encoder = load_encoder(adapter, info)
    denoiser = TorchDenoiser(ConditionedUNet(model.unet, encoder), device)
    reason = "asked for" if config.backend == "torch" else "the only backend installed that runs this adapter"
    draws = [config.attempts, config.tolerance] if config.attempts > 1 else []
    made_from = [adapter_hash(adapter), info.base_fingerprint, sampler_settings(config), config.precision, *draws]
    generator = hash_json(made_from)
    return Engine(denoiser, model, info, config, generator[:16], reason)


def render(engine: Engine, rows: Sequence[PlanRow], job: Job) -> Iterator[tuple[Sequence[PlanRow], np.ndarray]]:
    """Batches of plan rows with their images, uint8 [B, H, W, 3]. An image depends on its row alone."""
    null_text = _encode(engine, [engine.config.negative_prompt])
    for start in range(0, len(rows), engine.config.batch_size):
        batch = rows[start : start + engine.config.batch_size]
        yield batch, _render_batch(engine, batch, null_text)
        job.progress("generating", start + len(batch), len(rows))


def _render_batch(engine: Engine, rows: Sequence[PlanRow], null_text: torch.Tensor) -> np.ndarray:
    device, side = engine.denoiser.device, engine.info.resolution // engine.base.latent_size
    captions = [row.caption for row in rows]
    distinct = list(dict.fromkeys(captions))
    text = _encode(engine, distinct)[[distinct.index(c) for c in captions]]
    conditioning = Conditioning(
        text=text,
        label=torch.tensor([row.label for row in rows], device=device),
        difficulty=torch.tensor([row.requested_difficulty for row in rows], dtype=torch.float32, device=device),
        null_text=null_text,
    )
    shape = (engine.base.vae.config["latent_channels"], side, side)
    latents = sample(
        engine.denoiser,
        sampling_scheduler(engine.config.scheduler, engine.base.scheduler_config),
        seeded_noise([row.seed for row in rows], shape).to(device),
        conditioning,
        engine.guidance,
        steps=engine.config.steps,
        clip_range=engine.config.clip_range,
    )
    return decode_latents(engine.base.vae, latents, engine.config.decode_batch)


def _encode(engine: Engine, captions: list[str]) -> torch.Tensor:
    return encode_text(engine.base, captions).float().to(engine.denoiser.device)
