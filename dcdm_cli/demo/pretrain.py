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
import json
import logging
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from dcdm_cli.demo.glyphs import draw_digits
from dcdm_cli.model.packaged import TINY_BASE
from dcdm_cli.training.pretraining import (
    Recipe,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    encode_all,
    save_pipeline,
    tokenize_templates,
    train_unet,
    train_vae,
)

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

    tokenizer = build_tokenizer(folder / "tokenizer", WORDS + DIGIT_WORDS, MAX_TOKENS)
    prompts = tokenize_templates(tokenizer, TEMPLATES, [str(digit) for digit in range(10)])
    networks = build_unet(), build_text_encoder(tokenizer)
    ema, unet_curve = train_unet(*networks, prompts, latents, torch.from_numpy(labels), recipe)
    seconds["unet"] = time.monotonic() - started - sum(seconds.values())
    save_pipeline(folder, vae, ema["unet"], ema["text"], tokenizer, build_scheduler())
    latent_range = float(latents.abs().flatten().kthvalue(int(latents.numel() * 0.999))[0])
    results = {"latent_abs_p999": round(latent_range, 3), "vae_curve": vae_curve, "unet_curve": unet_curve}
    write_record(folder, recipe, seconds, results)


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
