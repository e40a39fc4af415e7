"""Rebuilds `tiny_base/`, the plain diffusers pipeline the demo fine-tunes: `python -m dcdm_cli.demo.pretrain`.

Trained from scratch on drawn digits only (glyphs.py), never on the target data. Stages: a tokenizer from a word list,
an AutoencoderKL (f = 4, 32 px -> 8x8x4), then UNet2DConditionModel and CLIPTextModel together with the noise-prediction
loss and SD's `scaled_linear` betas. Recipe, seconds and loss curves are written to `pretraining.json` beside
the weights. Not from the paper: it stands in for Stable Diffusion so that the whole job runs offline on a CPU.
"""

# diffusers annotates these calls more narrowly than what it takes (one-element tuples, IntTensor, no None).
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import argparse
import copy
import json
import logging
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dcdm_cli.demo.glyphs import draw_digits

TINY_BASE = Path(__file__).parent / "tiny_base"
WORDS = [
    "a",
    "an",
    "the",
    "of",
    "photo",
    "image",
    "picture",
    "handwritten",
    "drawn",
    "written",
    "digit",
    "number",
    "numeral",
    "class",
    "in",
    "with",
    "hard",
    "easy",
]
DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = (
    "a photo of the digit {}",
    "a photo of a {}",
    "a handwritten digit {}",
    "a drawn digit {}",
    "the number {}",
    "{}",
)
MAX_TOKENS = 16
log = logging.getLogger("dcdm.pretrain")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. `*_steps` are optimiser steps of `batch` images each."""

    images: int = 30_000
    vae_steps: int = 2_500
    unet_steps: int = 7_000
    batch: int = 64
    vae_lr: float = 2e-3
    unet_lr: float = 1e-3
    kl_weight: float = 1e-3
    text_dropout: float = 0.1
    ema_decay: float = 0.999
    seed: int = 0


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that spells any text and knows the demo's words as single tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocab = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS + DIGIT_WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = f"{pieces[0]} {pieces[1]}"
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            if pair not in merges:
                merges.append(pair)
                vocab.append(pieces[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(vocab))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=3,  # diffusers' name for the number of heads: head dims 16 and 32
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """SD's betas. Clipping of the clean-latent estimate is a setting of generation: SD pipelines switch it off here."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def train_vae(vae: AutoencoderKL, images: torch.Tensor, recipe: Recipe) -> list[dict[str, float]]:
    """images: float32 [N, 3, 32, 32] in [-1, 1]. Returns the loss curve."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.vae_lr, total_steps=recipe.vae_steps, pct_start=0.05
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    curve = Curve("vae")
    for step in range(recipe.vae_steps):
        batch = images[torch.randint(len(images), (recipe.batch,), generator=generator)]
        posterior = vae.encode(batch).latent_dist
        rebuilt = vae.decode(posterior.sample(generator)).sample
        mse = F.mse_loss(rebuilt, batch)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        optimizer.zero_grad()
        (mse + recipe.kl_weight * kl).backward()
        optimizer.step()
        schedule.step()
        curve.add(step, recipe.vae_steps, mse=mse.item(), kl=kl.item())
    return curve.points


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Posterior means, float32 [N, 4, 8, 8], unscaled."""
    return torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in images.split(256)])


def train_unet(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    prompts: torch.Tensor,
    latents: torch.Tensor,
    labels: torch.Tensor,
    scheduler: DDIMScheduler,
    recipe: Recipe,
) -> tuple[torch.nn.ModuleDict, list[dict[str, float]]]:
    """prompts: int64 [classes + 1, templates, tokens], the last row the empty prompt; latents scaled.

    Returns the EMA of both networks and the loss curve.
    """
    nets = torch.nn.ModuleDict({"unet": unet, "text": text})
    ema = copy.deepcopy(nets).requires_grad_(False)
    optimizer = torch.optim.AdamW(nets.parameters(), lr=recipe.unet_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.unet_lr, total_steps=recipe.unet_steps, pct_start=0.05, final_div_factor=100
    )
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    curve = Curve("unet")
    for step in range(recipe.unet_steps):
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        tokens = pick_prompts(prompts, labels[rows], recipe.text_dropout, generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = torch.randint(1000, (recipe.batch,), generator=generator)
        noisy = scheduler.add_noise(latents[rows], noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps, text(tokens)[0]).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(recipe.ema_decay, (1 + step) / (10 + step))
        for kept, new in zip(ema.parameters(), nets.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)
        curve.add(step, recipe.unet_steps, loss=loss.item())
    return ema, curve.points


def pick_prompts(
    prompts: torch.Tensor, labels: torch.Tensor, dropout: float, generator: torch.Generator
) -> torch.Tensor:
    """A random template per image; the empty prompt with probability `dropout`. Returns int64 [B, tokens]."""
    empty = torch.rand(len(labels), generator=generator) < dropout
    rows = torch.where(empty, len(prompts) - 1, labels)
    return prompts[rows, torch.randint(prompts.shape[1], (len(labels),), generator=generator)]


def tokenize_templates(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """int64 [11, templates, tokens]: ten digits, then the empty prompt."""
    texts = [[template.format(digit) for template in TEMPLATES] for digit in range(10)] + [[""] * len(TEMPLATES)]
    rows = [
        tokenizer(t, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids
        for t in texts
    ]
    return torch.stack(rows)


class Curve:
    """Averages losses over the last stretch of steps, keeps about fifty points, logs them."""

    def __init__(self, name: str) -> None:
        self.name, self.points, self._window = name, [], []

    def add(self, step: int, total: int, **losses: float) -> None:
        self._window.append(losses)
        if (step + 1) % max(1, total // 50) and step + 1 != total:
            return
        mean = {key: round(float(np.mean([w[key] for w in self._window])), 5) for key in losses}
        self.points.append({"step": step + 1, **mean})
        self._window.clear()
        log.info("%s step %d/%d %s", self.name, step + 1, total, mean)


def pretrain(folder: Path, recipe: Recipe) -> None:
    """Builds the pipeline folder from nothing. About 35 minutes on 2 CPU cores with the default recipe."""
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    drawn, labels = draw_digits(recipe.images, recipe.seed)
    images = torch.from_numpy(drawn).float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)
    seconds = {"draw": time.monotonic() - started}

    vae = build_vae()
    vae_curve = train_vae(vae, images, recipe)
    latents = encode_all(vae.eval(), images)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    latents = latents * vae.config.scaling_factor
    seconds["vae"] = time.monotonic() - started - sum(seconds.values())

    tokenizer = build_tokenizer(folder / "tokenizer")
    scheduler = build_scheduler()
    ema, unet_curve = train_unet(
        build_unet(),
        build_text_encoder(tokenizer),
        tokenize_templates(tokenizer),
        latents,
        torch.from_numpy(labels),
        scheduler,
        recipe,
    )
    seconds["unet"] = time.monotonic() - started - sum(seconds.values())
    save_pipeline(folder, vae, ema["unet"], ema["text"], tokenizer, scheduler)
    latent_range = float(latents.abs().flatten().kthvalue(int(latents.numel() * 0.999))[0])
    results = {"latent_abs_p999": round(latent_range, 3), "vae_curve": vae_curve, "unet_curve": unet_curve}
    write_record(folder, recipe, seconds, results)


def save_pipeline(folder: Path, vae, unet, text, tokenizer, scheduler) -> None:
    """Writes a plain StableDiffusionPipeline in fp16 safetensors."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def write_record(folder: Path, recipe: Recipe, seconds: dict[str, float], results: dict) -> None:
    record = {
        "recipe": asdict(recipe),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "data": "drawn digits only (dcdm_cli/demo/glyphs.py); no image of the target data",
        **results,
    }
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=TINY_BASE, help="pipeline folder to write")
    for name, value in asdict(Recipe()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pretrain(options.pop("out"), Recipe(**options))


if __name__ == "__main__":
    main()
