"""The two sides of bench_generate: diffusers' own pipeline and our engine, made to do the same work.

Both get the same weights, prompts, seeds, steps and guidance. diffusers is used as its users would use it for this
task: prompts are encoded by the pipeline, the difficulty tokens appended to them, everything runs in batches, and each
image is saved as a PNG. Our side is `run_plan`, as `dcdm generate` calls it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.backends.exported import cores_left_to
from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import Plan, PlanInputs, make_plan
from dcdm_cli.generation.prompts import PromptCache
from dcdm_cli.generation.run import run_plan
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.model.adapter import AdapterInfo, save_adapter
from dcdm_cli.model.base import DTYPES, BaseModel, encode_text, load_base
from dcdm_cli.model.conditioning import NULL_DIFFICULTY, EncoderConfig, Mode, join_tokens
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.encoder import DifficultyEncoder
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import FusedModel
from dcdm_cli.model.latents import Decode, torch_decoder
from dcdm_cli.model.lora import add_lora
from dcdm_cli.model.packaged import TINY_BASE, TINY_NAME
from dcdm_cli.model.schedule import sampling_scheduler
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import GenerateConfig
from dcdm_export.folder import make_export
from dcdm_export.onnx_graph import default_opset
from dcdm_export.orders import EngineOrder, Order
from dcdm_export.signature import Precision

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCALE = 2.0
CALLS = 2  # of a guided step at that scale
PATH = "two calls, no scoring, no redraws"  # what both sides do, in the words of the results


def config(steps: int, **changes: Any) -> GenerateConfig:
    """Plain classifier-free guidance, which diffusers has too: both scales equal, no clipping."""
    same = {"scheduler": "dpmpp", "steps": steps, "text_guidance": SCALE, "difficulty_guidance": SCALE, "score": False}
    return GenerateConfig.model_validate({**same, **changes})


def plan_of(images: int, generator: str) -> Plan:
    captions = [[f"a photo of the digit {name}"] for name in NAMES]
    inputs = PlanInputs(NAMES, captions, np.linspace(0, 1, 10, dtype=np.float32), 1.0, None)
    counts = np.full(len(NAMES), images // len(NAMES))
    counts[: images - counts.sum()] += 1
    return make_plan(inputs, counts, parse_target("uniform:0,1"), 0, generator)


def make_adapter(folder: Path, tokens: int = 4, mode: Mode = "append") -> Path:
    """An adapter for the tiny base that leaves its digits recognisable: a fresh LoRA, and faint difficulty tokens."""
    base = load_base(TINY_NAME)
    torch.manual_seed(0)
    add_lora(base.unet, 16, 16, ["to_q", "to_k", "to_v", "to_out.0"])
    encoder = faint_encoder(base.text_encoder.config.hidden_size, tokens=tokens, hidden=128, mode=mode)
    info = AdapterInfo(TINY_NAME, base.fingerprint, None, NAMES, 32, encoder.config, {})
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_adapter(folder, base.unet, encoder, info)
    return folder


def cpu_backends() -> list[str]:
    """Those that are installed."""
    return ["torch", "onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def write_export(
    model: FusedModel,
    adapter: Path,
    export: Path,
    *,
    afresh: bool = False,
    precision: Precision = "fp32",
    device: str = "cpu",
    engines: EngineOrder | None = None,
) -> None:
    """The graphs of an adapter's model for guided steps of `CALLS` calls; those that are there and fit are kept.

    model: on the CPU, in float32. device: where graphs and engines are compared with PyTorch. Raises what `make_export`
    raises, ParityError for one that computes otherwise.
    """
    facts, opset = model_facts(model, adapter, 1.0), default_opset(precision, gpu=device != "cpu")
    requests = export_requests(model, facts, precision, opset, {}, CALLS, precision)
    order = Order(facts, requests, {}, "bench", engines, device)
    make_export(order, export, adapter.with_name("part"), afresh=afresh)


def faint_encoder(dim: int, tokens: int, hidden: int, mode: Mode = "append") -> DifficultyEncoder:
    torch.manual_seed(0)
    encoder = DifficultyEncoder(EncoderConfig(classes=len(NAMES), dim=dim, tokens=tokens, hidden=hidden, mode=mode))
    with torch.no_grad():
        encoder.mlp[-1].weight.fill_(0.1)  # pyright: ignore
        encoder.null.mul_(0.1)
    return encoder.eval().requires_grad_(False)


def sd15_model(device: str, dtype: str, *, small: bool = False) -> FusedModel:
    """Stable Diffusion 1.5's architecture with random weights, and one difficulty token. small: a sketch of it."""
    torch.manual_seed(0)
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    width = 32 if small else 768
    tokenizer = CLIPTokenizer.from_pretrained(TINY_BASE / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2 if small else 12,
        num_attention_heads=4 if small else 12, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.device(device):  # random weights: a CPU takes long
        unet = UNet2DConditionModel(
            sample_size=16 if small else 64, cross_attention_dim=width, attention_head_dim=8,
            block_out_channels=(32, 32, 32, 32) if small else (320, 640, 1280, 1280),
        )  # fmt: skip
        vae = AutoencoderKL(
            latent_channels=4, sample_size=512, layers_per_block=2, **blocks,
            block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        )  # fmt: skip
        text_encoder = CLIPTextModel(text)
    for part, kind in ((unet, DTYPES[dtype]), (vae, torch.float32), (text_encoder, DTYPES[dtype])):
        torch.nn.Module.to(part.requires_grad_(False).eval(), device, kind)
    schedule = dict(load_base(TINY_NAME).scheduler_config)
    base = BaseModel("random", unet, vae, text_encoder, tokenizer, schedule, "random")
    encoder = faint_encoder(width, tokens=1, hidden=256).to(device)
    info = AdapterInfo("random", "random", None, NAMES, 8 * unet.config["sample_size"], encoder.config, {})
    return FusedModel(ConditionedUNet(unet, encoder), base, info)


def torch_engine(model: FusedModel, settings: GenerateConfig, device: str, options: TorchOptions) -> Engine:
    """Our engine around a model in memory, which it changes for inference."""
    return engine_around(model, TorchDenoiser(model.network, device, options), torch_decoder(model.base.vae), settings)


def engine_around(model: FusedModel, denoiser: Denoiser, decode: Decode, settings: GenerateConfig) -> Engine:
    """An engine whose prompts a model in memory encodes."""
    base = model.base
    prompts = PromptCache(lambda captions: encode_text(base, captions), denoiser.device)
    return Engine(denoiser, decode, base, model.info, settings, prompts, "random", "asked for")


def row_flops(model: FusedModel) -> int:
    """Floating-point operations of one row through UNet and encoder, attention products included."""
    network, side = model.network, model.info.resolution // model.base.latent_size
    device, dtype = network.unet.device, network.unet.dtype
    rows = (
        torch.zeros(1, 4, side, side, device=device, dtype=dtype),
        torch.zeros(1, device=device),
        encode_text(model.base, [""]).to(dtype),
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.zeros(1, device=device),
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(*rows)
    return counter.get_total_flops()


def call_alone(denoiser: Denoiser, *inputs: Tensor) -> Tensor:
    """As generation calls it."""
    with cores_left_to(denoiser):
        return denoiser(*inputs)


class Diffusers:
    """StableDiffusionPipeline, all in the UNet's precision, as a pipeline is that was loaded in it.

    compile: as diffusers' guide to speed does it, channels last and max-autotune.
    """

    def __init__(self, model: FusedModel, settings: GenerateConfig, device: str, *, compile: bool = False) -> None:
        base, encoder = model.base, model.network.encoder
        assert encoder is not None
        self.encoder, self.settings, self.device, self.config = encoder, settings, device, encoder.config
        self.pipeline: Any = StableDiffusionPipeline(
            vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=base.unet,
            scheduler=sampling_scheduler(settings.scheduler, base.scheduler_config), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip  # pyright: ignore
        torch.nn.Module.to(self.pipeline.vae, base.unet.dtype)
        if compile:
            self.pipeline.unet.to(memory_format=torch.channels_last)
            self.pipeline.unet = torch.compile(self.pipeline.unet, mode="max-autotune", dynamic=False)
        self.pipeline.set_progress_bar_config(disable=True)

    def images(self, rows: Sequence[Any], batch: int) -> list[Any]:
        return [image for start in range(0, len(rows), batch) for image in self._batch(rows[start : start + batch])]

    def to_files(self, images: int, batch: int, folder: Path) -> None:
        for i, image in enumerate(self.images(plan_of(images, "").rows(), batch)):
            image.save(folder / f"{i}.png")

    def step(self, batch: int) -> Callable[[], Any]:
        """One guided step of the network alone."""
        unet, size = self.pipeline.unet, self.pipeline.unet.config.sample_size
        rows = torch.randn(2 * batch, 4, size, size, device=self.device, dtype=unet.dtype)
        width = self.pipeline.text_encoder.config.hidden_size
        length = self.pipeline.tokenizer.model_max_length + self.config.tokens
        text = torch.randn(2 * batch, length, width, device=self.device, dtype=unet.dtype)

        @torch.no_grad()
        def run() -> Any:
            return unet(rows, 500, encoder_hidden_states=text, return_dict=False)[0]

        return run

    def _batch(self, rows: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            texts = self.pipeline.encode_prompt([row.caption for row in rows], self.device, 1, True, [""] * len(rows))
            difficulty = torch.tensor([row.requested_difficulty for row in rows], device=self.device)
            label = torch.tensor([row.label for row in rows], device=self.device)
            levels = (difficulty, torch.full_like(difficulty, NULL_DIFFICULTY))
            full, none = (
                join_tokens(text, self.encoder(label, level), self.config.mode)
                for text, level in zip(texts, levels, strict=True)
            )
        return self.pipeline(
            prompt_embeds=full, negative_prompt_embeds=none, guidance_scale=self.settings.difficulty_guidance,
            num_inference_steps=self.settings.steps,
            generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        ).images  # fmt: skip


class Ours:
    """An engine, with prompts encoded anew in each run, as in a run of the command."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def sized(self, batch: int) -> Engine:
        """The engine at a batch size, as a new run has it."""
        settings = self.engine.config.model_copy(update={"batch_size": batch, "decode_batch": min(batch, 64)})
        base = self.engine.base
        prompts = PromptCache(lambda captions: encode_text(base, captions), self.engine.denoiser.device)
        return dataclasses.replace(self.engine, config=settings, prompts=prompts)

    def images(self, rows: Sequence[Any], batch: int) -> list[Any]:
        return [image for _, images in render(self.sized(batch), rows, Job()) for image in images]

    def to_files(self, images: int, batch: int, folder: Path) -> None:
        run_plan(plan_of(images, self.engine.generator), self.sized(batch), folder, Job())

    def step(self, batch: int) -> Callable[[], Any]:
        engine, rows = self.engine, 2 * batch
        side, device = engine.info.resolution // engine.base.latent_size, engine.denoiser.device
        inputs = (
            torch.randn(batch, 4, side, side, device=device).repeat(2, 1, 1, 1),
            torch.full((rows,), 500.0, device=device),
            engine.prompts.get(["a photo of the digit one"] * rows),
            torch.ones(rows, dtype=torch.int64, device=device),
            torch.linspace(0, 1, rows, device=device),
        )
        return lambda: call_alone(engine.denoiser, *inputs)
