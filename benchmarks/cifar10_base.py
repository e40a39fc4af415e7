"""Pretrains the small base model of the CIFAR-10 experiments, on class captions only.

    python benchmarks/cifar10_base.py --data DIR --out DIR [--setting gpu|cpu|tiny] [--warm FOLDER]

--warm begins with the weights of an earlier base, whose networks may have fewer latent channels; its record goes on in
the new one, so that all images ever seen are counted.

SIGTERM saves and stops (code 143); the same command goes on. The result is a plain diffusers pipeline folder with
`pretraining.json` (recipe, seconds, loss curves) and `rebuilt.png` (what the VAE keeps) beside the weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from bases.pretraining import (
    Place,
    Recipe,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    encode_all,
    save_pipeline,
    take_over,
    tokenize_templates,
    train_unet,
    train_vae,
)
from cifar10_data import assign, read_images
from common import provenance, save
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.run.progress import Job
from dcdm_cli.signals import asked_to_stop, install_handlers
from dcdm_cli.workers.devices import settle_device

TEMPLATES = ("a photo of a {}", "a picture of a {}", "{}", "an image of a {}")
WORDS = ("a", "an", "of", "the", "photo", "picture", "image")
MAX_TOKENS = 16


@dataclass(frozen=True)
class Setting:
    """vae, unet: channels per level; the VAE halves the image once per level after the first, to `latents` channels."""

    recipe: Recipe
    vae: tuple[int, ...]
    latents: int
    unet: tuple[int, ...]
    width: int
    every: int


SETTINGS = {
    "gpu": Setting(
        Recipe(45_000, vae_steps=3_000, unet_steps=8_000, batch=512, vae_lr=2e-3, unet_lr=6e-4, kl_weight=3e-4),
        vae=(48, 96), latents=4, unet=(64, 128, 256), width=96, every=2_500,
    ),
    "cpu": Setting(
        Recipe(
            45_000, vae_steps=5_000, unet_steps=11_500, vae_batch=16, vae_lr=1e-3, unet_lr=8e-4, kl_weight=3e-4,
            ema_decay=0.9995, snr_gamma=5,
        ),
        vae=(16, 32, 64), latents=12, unet=(48, 96), width=64, every=250,
    ),
    "tiny": Setting(
        Recipe(200, vae_steps=6, unet_steps=6, batch=8), vae=(8, 8, 16), latents=8, unet=(16, 32), width=32, every=2
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="gpu")
    parser.add_argument("--warm", type=Path, help="pipeline folder of an earlier base")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    install_handlers(logging.warning)
    try:
        pretrain(options.data, options.out, SETTINGS[options.setting], options.setting, options.warm)
    except InterruptedRunError as stop:
        logging.info(stop.message)
        raise SystemExit(int(stop.code)) from None


def pretrain(data: Path, out: Path, setting: Setting, name: str, warm: Path | None) -> None:
    device = torch.device(settle_device("auto")[0])
    images = read_images(data, "train")
    rows = assign(images.labels)["base"][: setting.recipe.images]
    recipe = replace(setting.recipe, images=len(rows))
    pixels, labels = _mirrored(torch.from_numpy(images.pixels(rows))), torch.from_numpy(images.labels[rows]).repeat(2)
    place = Place(
        out / "checkpoints", setting.every, device.type == "cuda", Job(str(device), stop_signal=asked_to_stop)
    )
    torch.manual_seed(recipe.seed)
    clock = time.monotonic()
    vae = _vae(setting)
    earlier = _earlier(warm)
    if earlier is not None:
        take_over(vae, earlier.vae, (setting.latents, earlier.vae.config.latent_channels))
    curves = {"vae": train_vae(vae.to(device), pixels, recipe, place)}
    latents = encode_all(vae.eval(), pixels)
    scale = float(1 / latents.std())
    vae.register_to_config(scaling_factor=scale)
    tokenizer = build_tokenizer(out / "tokenizer", [*WORDS, *images.names], MAX_TOKENS)
    prompts = tokenize_templates(tokenizer, TEMPLATES, images.names)
    networks = _unet(setting, tuple(latents.shape)[-1]), build_text_encoder(tokenizer, setting.width)
    if earlier is not None:
        take_over(networks[0], earlier.unet, (setting.latents, earlier.vae.config.latent_channels))
        networks[1].load_state_dict(earlier.text_encoder.state_dict())
    on_device = (network.to(device) for network in networks)
    ema, curves["unet"] = train_unet(*on_device, prompts, latents * scale, labels, recipe, place)
    save_pipeline(out, vae.cpu(), ema["unet"].cpu(), ema["text"].cpu(), tokenizer, build_scheduler())
    _rebuilt(out, vae, pixels[:16])
    record = {"setting": name, "recipe": asdict(recipe), "last_piece_seconds": round(time.monotonic() - clock, 1)}
    record |= {"images": len(rows), "data": "the base part of the training file, class captions only", "curves": curves}
    if warm is not None:
        before = json.loads((warm / "pretraining.json").read_text("utf-8"))
        record["earlier"] = [*before.pop("earlier", []), {key: before[key] for key in ("date", "hardware", "recipe")}]
    parameters = {part: sum(p.numel() for p in net.parameters()) for part, net in (("vae", vae), ("unet", ema["unet"]))}
    document = {**provenance("python benchmarks/cifar10_base.py"), "parameters": parameters, **record}
    save(document, "pretraining", out)


def _earlier(warm: Path | None) -> StableDiffusionPipeline | None:
    """In single precision, on the CPU."""
    if warm is None:
        return None
    return StableDiffusionPipeline.from_pretrained(warm, torch_dtype=torch.float32, safety_checker=None)


def _mirrored(pixels: torch.Tensor) -> torch.Tensor:
    """The images, then their mirror images."""
    return torch.cat((pixels, pixels.flip(-1)))


def _vae(setting: Setting) -> AutoencoderKL:
    levels = len(setting.vae)
    return AutoencoderKL(
        block_out_channels=setting.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=1,  # a group of few channels would take the image's own brightness and colour out
        latent_channels=setting.latents,
        sample_size=32,
        mid_block_add_attention=False,
    )


def _unet(setting: Setting, side: int) -> UNet2DConditionModel:
    levels = len(setting.unet)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=setting.latents,
        out_channels=setting.latents,
        block_out_channels=setting.unet,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=setting.width,
        attention_head_dim=4,  # diffusers' name for the number of heads
    )


@torch.no_grad()
def _rebuilt(out: Path, vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Originals above what the VAE makes of them: what no generator on top of it can exceed."""
    network = vae.float().eval()
    made = network(pixels.float().div(127.5).sub(1)).sample.add(1).mul(127.5).clamp(0, 255).byte()
    rows = [np.concatenate(list(part.permute(0, 2, 3, 1).numpy()), axis=1) for part in (pixels, made)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST).save(out / "rebuilt.png")


if __name__ == "__main__":
    main()
