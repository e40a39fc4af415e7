"""Rebuilds `tiny_base`, the plain diffusers pipeline that the digits preset fine-tunes.

    python benchmarks/bases/digits_base.py --data MNIST_TRAIN.parquet [--out DIR] [--steps N]

Trained from nothing on MNIST's training images in many styles (styles.py), never on the target data. Stages: a
tokenizer from a word list, an AutoencoderKL (f = 4, 32 px -> 8x8x4), then UNet2DConditionModel and CLIPTextModel
together with the noise-prediction loss and SD's `scaled_linear` betas. SIGTERM saves and stops (code 143); the same
command goes on. Recipe, seconds and loss curves are written to `pretraining.json` beside the weights. Not from the
paper: it stands in for Stable Diffusion so that the whole job runs offline on a CPU.
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
from pretraining import (
    Checkpointing,
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
from styles import read_digits, styled

from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.model.packaged import TINY_BASE
from dcdm_cli.run.progress import Job
from dcdm_cli.signals import asked_to_stop, install_handlers

STYLES = 3  # drawings of each digit
WORDS = ("a", "of", "the", "photo", "digit", "number", "handwritten", "drawn")
DIGIT_WORDS = tuple("0123456789")
TEMPLATES = (
    "a photo of the digit {}",
    "a photo of a {}",
    "a handwritten digit {}",
    "a drawn digit {}",
    "the number {}",
    "{}",
)
MAX_TOKENS = 16
RECIPE = Recipe(vae_steps=2_500, unet_steps=5_000, vae_lr=2e-3, unet_lr=1e-3, ema_decay=0.9995)
DATA = (
    "MNIST's 60,000 training images (LeCun, Cortes, Burges; handwriting of NIST's SD-1 and SD-3; commonly given as "
    "CC BY-SA 3.0), in many styles (benchmarks/bases/styles.py); no image of the target data"
)


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


def pretrain(data: Path, folder: Path, checkpoints: Path, recipe: Recipe) -> None:
    """Builds the pipeline folder from nothing, or goes on from what `checkpoints` holds."""
    place = Checkpointing(checkpoints, 250, job=Job("cpu", stop_signal=asked_to_stop))
    torch.manual_seed(recipe.seed)
    digits, numbers = read_digits(data)
    drawn = torch.from_numpy(styled(digits, STYLES, recipe.seed))[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(numbers).repeat(STYLES)
    clock = Clock(checkpoints / "seconds.json")

    vae = build_vae()
    vae_curve = clock.time("vae", lambda: train_vae(vae, drawn, recipe, place))
    latents = encode_all(vae.eval(), drawn)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    latents = latents * vae.config.scaling_factor

    tokenizer = build_tokenizer(folder / "tokenizer", WORDS + DIGIT_WORDS, MAX_TOKENS)
    prompts = tokenize_templates(tokenizer, TEMPLATES, [str(digit) for digit in range(10)])
    networks = build_unet(), build_text_encoder(tokenizer)
    ema, unet_curve = clock.time("unet", lambda: train_unet(*networks, prompts, latents, labels, recipe, place))
    save_pipeline(folder, vae, ema["unet"], ema["text"], tokenizer, build_scheduler())
    latent_range = float(latents.abs().flatten().kthvalue(int(latents.numel() * 0.999))[0])
    results = {"latent_abs_p999": round(latent_range, 3), "vae_curve": vae_curve, "unet_curve": unet_curve}
    write_record(folder, recipe, clock.seconds, {"images": len(drawn), **results})


class Clock:
    """Seconds per stage, over all pieces of a run that was stopped and continued."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    def time(self, stage: str, work):
        started = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 1)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.seconds))


def write_record(folder: Path, recipe: Recipe, seconds: dict[str, float], results: dict) -> None:
    record = {
        "recipe": {**asdict(recipe), "images": results.pop("images")},
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/bases/digits_base.py --data MNIST_TRAIN.parquet",
        "data": DATA,
        **results,
    }
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="MNIST's training images as Parquet")
    parser.add_argument("--out", type=Path, default=TINY_BASE, help="pipeline folder to write")
    parser.add_argument("--checkpoints", type=Path, default=Path("digits-base-checkpoints"))
    for name, value in asdict(RECIPE).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    install_handlers(logging.warning)
    data, out, checkpoints = (options.pop(name) for name in ("data", "out", "checkpoints"))
    try:
        pretrain(data, out, checkpoints, Recipe(**options))
    except InterruptedRunError as stop:
        logging.info(stop.message)
        raise SystemExit(int(stop.code)) from None


if __name__ == "__main__":
    main()
