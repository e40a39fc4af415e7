"""The networks of a fused model as export writes them: float32 at the edges, the chosen precision inside.

Comes in: a `FusedModel` in float32. Goes out: one `NetworkRequest` per network, with names, example inputs and the
cases the graph is compared by. Inputs and outputs are those that `dcdm_export.signature` describes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel

from dcdm_cli.files import hash_json
from dcdm_cli.model.adapter import adapter_hash
from dcdm_cli.model.base import DTYPES, BaseModel, encode_text, tokenize
from dcdm_cli.model.conditioning import NULL_DIFFICULTY
from dcdm_cli.model.denoiser import ConditionedUNet, share_prefix, split_gates
from dcdm_cli.model.fused import FusedModel
from dcdm_cli.model.latents import VaeDecoder, shift_factor
from dcdm_cli.model.text import TwoTextEncoders
from dcdm_cli.model.unscaled import drop_unit_scales
from dcdm_export.fp8 import NetworkCall
from dcdm_export.onnx_graph import LOWEST_OPSETS, TRACE_BATCH, Graph
from dcdm_export.orders import NetworkRequest
from dcdm_export.parity import Case
from dcdm_export.signature import DENOISER, TEXT_ENCODER, VAE_DECODER, ModelFacts, Precision

Calls = Callable[[], Sequence[NetworkCall]]
BATCHES = (1, 2, 5)
TIMESTEPS = (999.0, 1.0, 500.0, 250.0, 750.0)
# decoder and text encoder know none of them
ADAPTER_FACTS = {"class_names", "mode", "tokens", "adapter_hash", "lora_scale", "distilled", "extra_lora"}
DIFFICULTIES = (0.5, NULL_DIFFICULTY, 0.0, 1.0, 0.25)


class DenoiserToExport(nn.Module):
    """(latents, timestep, text, label, difficulty) -> prediction, all but label float32; the encoder stays float32."""

    def __init__(self, network: ConditionedUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        dtype = self.network.unet.dtype
        return self.network(latents.to(dtype), timestep, text.to(dtype), label, difficulty).float()

    def cast(self, precision: Precision) -> None:
        nn.Module.to(self.network.unet, DTYPES[precision])  # diffusers' own `to` warns of modules there are none of


class DecoderToExport(VaeDecoder):
    """Scaled latents float32 [B,C,h,w] -> images float32 [B,3,H,W] in [-1,1], unclipped in about that.

    clip: not for half precision, where it would hide an infinity, and in some runtimes a NaN, by which generation knows
    that it must decode an image once more.
    """

    def __init__(self, vae: AutoencoderKL, *, clip: bool) -> None:
        super().__init__(vae)
        self.clip = clip

    def forward(self, latents: Tensor) -> Tensor:
        images = super().forward(latents).float()
        return images.clamp(-1, 1) if self.clip else images

    def cast(self, precision: Precision) -> None:
        nn.Module.to(self.vae, DTYPES[precision])


class ExportedTextEncoder(nn.Module):
    """token_ids int64 [B,L] as `tokenize` gives them -> text float32 [B,T,D] as in `encode_text`."""

    def __init__(self, text_encoder: CLIPTextModel | TwoTextEncoders) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.text_encoder(token_ids)[0].float()

    def cast(self, precision: Precision) -> None:
        nn.Module.to(self.text_encoder, DTYPES[precision])


def model_facts(model: FusedModel, adapter: Path, lora_scale: float, extra_lora: str = "") -> ModelFacts:
    """What the signature says of the model. adapter: the folder it was loaded from. extra_lora: identity of a few-step
    LoRA that is fused into it."""
    base, info, encoder = model.base, model.info, model.info.encoder
    side = info.resolution // base.latent_size
    return ModelFacts(
        class_names=info.class_names,
        resolution=info.resolution,
        latent_shape=(base.vae.config["latent_channels"], side, side),
        text_shape=base.text_shape,
        scaling_factor=base.vae.config["scaling_factor"],
        shift_factor=shift_factor(base.vae),
        prediction_type=base.scheduler_config["prediction_type"],
        mode=encoder.mode if encoder else None,
        tokens=encoder.tokens if encoder else 0,
        base_fingerprint=info.base_fingerprint,
        adapter_hash=adapter_hash(adapter),
        lora_scale=lora_scale,
        distilled=info.distilled is not None,
        extra_lora=extra_lora,
    )


def export_requests(
    model: FusedModel,
    facts: ModelFacts,
    precision: Precision,
    opset: int,
    versions: Mapping[str, str],
    shared_calls: int = 1,
    decoder_precision: Precision = "fp32",
    recorded: Calls | None = None,
) -> tuple[NetworkRequest, ...]:
    """Denoiser, VAE decoder and text encoder, the decoder in a precision of its own, as in the torch backend.

    shared_calls: network calls of a guided step that share their prefix, 1 = the graph takes any rows. recorded: calls
    of the denoiser in use, by which one in fp8 is quantised; the text encoder is then in the decoder's precision.
    """
    # in place: whoever exports has loaded this model for it, and neither trains nor saves it
    for network in (model.network.unet, model.base.vae):
        drop_unit_scales(network)
    split_gates(model.network.unet)
    share_prefix(model.network.unet, shared_calls)
    denoiser = DenoiserToExport(model.network)
    decoder = DecoderToExport(model.base.vae, clip=decoder_precision == "fp32")
    text_encoder = ExportedTextEncoder(model.base.text_encoder)
    text = decoder_precision if precision == "fp8" else precision

    def request(name: str, module: Any, output: str, inputs: Any, kind: Precision, calls: int = 1) -> NetworkRequest:
        # what it does not depend on stays out of its key: a new adapter must not make a new decoder
        known = {k: v for k, v in asdict(facts).items() if name == DENOISER or k not in ADAPTER_FACTS}
        metadata = {
            "dcdm.network": name,
            "dcdm.precision": kind,
            "dcdm.shared_calls": str(calls),
            "dcdm.model": json.dumps(known),
            "dcdm.versions": json.dumps(dict(versions)),
        }
        example, spoken = inputs(TRACE_BATCH), max(opset, LOWEST_OPSETS[kind])
        # a finished network with this key is taken over, so the metadata has to say all that it is made from
        key = hash_json([spoken, metadata])
        graph = Graph(name, module.eval(), example, output, kind, spoken, calls, key, metadata)
        cases = tuple(Case(f"batch {batch}", inputs(batch)) for batch in BATCHES)
        if kind == "fp8":
            return NetworkRequest(graph, cases, calls=recorded)
        # cast later: in float32 it is the reference that every precision is compared with
        return NetworkRequest(graph, cases, partial(module.cast, kind) if kind != "fp32" else None)

    of_denoiser = partial(_denoiser_inputs, model.base, facts, shared_calls)
    return (
        request(DENOISER, denoiser, "prediction", of_denoiser, precision, shared_calls),
        request(VAE_DECODER, decoder, "images", partial(_decoder_inputs, facts), decoder_precision),
        request(TEXT_ENCODER, text_encoder, "text", partial(_text_inputs, model.base, facts), text),
    )


def _denoiser_inputs(base: BaseModel, facts: ModelFacts, calls: int, batch: int) -> dict[str, Tensor]:
    """Noise with real text; images differ in timestep, rows in text and difficulty, and one of several has none."""
    rows = calls * batch
    return {
        # repeated as whole groups, which is how `SharedRows` takes rows for equal
        "latents": _decoder_inputs(facts, batch)["latents"].repeat(calls, 1, 1, 1),
        "timestep": torch.tensor([TIMESTEPS[i % len(TIMESTEPS)] for i in range(batch)]).repeat(calls),
        "text": encode_text(base, _captions(facts, rows)).float(),
        "label": torch.arange(rows) % max(1, len(facts.class_names)),
        "difficulty": torch.tensor([DIFFICULTIES[i % len(DIFFICULTIES)] for i in range(rows)]),
    }


def _decoder_inputs(facts: ModelFacts, batch: int) -> dict[str, Tensor]:
    return {"latents": torch.randn(batch, *facts.latent_shape, generator=torch.Generator().manual_seed(batch))}


def _text_inputs(base: BaseModel, facts: ModelFacts, batch: int) -> dict[str, Tensor]:
    return {"token_ids": tokenize(base, _captions(facts, batch))}


def _captions(facts: ModelFacts, batch: int) -> list[str]:
    """The empty prompt comes second, so that it is in the trace and in every case of several rows."""
    names = facts.class_names or ("thing",)
    return [f"a photo of a {names[i % len(names)]}" if i != 1 else "" for i in range(batch)]
