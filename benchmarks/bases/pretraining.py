"""Training a small base model from nothing, in Stable Diffusion's layout: shared by the demo's base and benchmarks.

A byte-level tokenizer from a word list, an AutoencoderKL, then UNet2DConditionModel and CLIPTextModel together with the
noise-prediction loss and SD's `scaled_linear` betas. Images and captions are the caller's. Not from the paper: such a
base stands in for Stable Diffusion where there is no network, or where its training images must be known.
"""

# diffusers annotates these calls more narrowly than what it takes (one-element tuples, IntTensor, no None).
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dcdm_cli.files import hash_json
from dcdm_cli.run.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from dcdm_cli.run.progress import Job

TIMESTEPS = 1000
_UNET_ONLY = {"batch", "unet_steps", "unet_lr", "text_dropout", "ema_decay", "snr_gamma"}  # of a recipe
POINTS = 50  # of a loss curve
log = logging.getLogger("dcdm.pretrain")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, given the images. `*_steps` are optimiser steps of `batch` images each.
    vae_batch: of the VAE's steps, None = `batch`: small ones stay in the cache of a CPU. snr_gamma: Min-SNR weights of
    the UNet's loss (Hang et al. 2023), which learns shapes sooner; None = plain MSE."""

    images: int = 30_000
    vae_steps: int = 2_500
    unet_steps: int = 7_000
    batch: int = 64
    vae_batch: int | None = None
    vae_lr: float = 2e-3
    unet_lr: float = 1e-3
    kl_weight: float = 1e-3
    text_dropout: float = 0.1
    ema_decay: float = 0.999
    snr_gamma: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Checkpointing:
    """Where a training run keeps its checkpoints, how often, and whether to compute in bfloat16.

    folder None = none are kept: a stopped run starts again.
    """

    folder: Path | None = None
    every: int = 500
    bf16: bool = False
    job: Job = field(default_factory=Job)


def build_tokenizer(folder: Path, words: Sequence[str], max_tokens: int) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that spells any text and knows the given words as single tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocab = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in words:
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
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 64) -> CLIPTextModel:
    """Two layers of `width` channels."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def take_over(network: nn.Module, earlier: nn.Module, latents: tuple[int, int]) -> None:
    """Warm start: the weights of a network that is alike but for its number of latent channels. Channels that are new
    keep their random beginning. latents: of the new and of the earlier network."""
    old = earlier.state_dict()
    for name, new in network.state_dict().items():
        sides = [*zip(new.shape, old[name].shape, strict=True)]
        double = [side == (2 * latents[0], 2 * latents[1]) and side[0] != side[1] for side in sides]
        ours, theirs = (_by_moment(weights, double) for weights in (new, old[name]))
        part = tuple(slice(min(pair)) for pair in zip(ours.shape, theirs.shape, strict=True))
        ours[part] = theirs[part].to(new.dtype)


def _by_moment(weights: Tensor, double: Sequence[bool]) -> Tensor:
    """A view with a dimension of two for those that hold means, then log variances."""
    sides = zip(weights.shape, double, strict=True)
    return weights.view([part for side, two in sides for part in ((2, side // 2) if two else (side,))])


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


def tokenize_templates(tokenizer: CLIPTokenizer, templates: Sequence[str], names: Sequence[str]) -> Tensor:
    """int64 [names + 1, templates, tokens]: a row per class, then the empty prompt. `{}` stands for the name."""
    texts = [[template.replace("{}", name) for template in templates] for name in names] + [[""] * len(templates)]
    how: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return torch.stack([tokenizer(t, max_length=tokenizer.model_max_length, **how).input_ids for t in texts])


def train_vae(
    vae: AutoencoderKL, images: Tensor, recipe: Recipe, place: Checkpointing | None = None
) -> list[dict[str, float]]:
    """images: float32 or uint8 [N, 3, H, W], float in [-1, 1]. Returns the loss curve. Goes on from a checkpoint."""
    place = place or Checkpointing()
    batch = recipe.vae_batch or recipe.batch
    recipe = replace(recipe, batch=batch, vae_batch=batch)
    run = _Run("vae", vae, _Descent(recipe.vae_lr, recipe.vae_steps), recipe, place)
    images = images.to(run.device)

    def step() -> dict[str, Tensor]:
        batch = _pixels(images[run.integers(len(images))])
        with run.autocast():
            posterior = vae.encode(batch).latent_dist
            rebuilt = vae.decode(posterior.sample(run.generator)).sample
        mse = F.mse_loss(rebuilt.float(), batch)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return {"loss": mse + recipe.kl_weight * kl, "mse": mse.detach(), "kl": kl.detach()}

    return run.train(step)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means, float32 [N, 4, h, w] on the CPU, unscaled."""
    device = next(vae.parameters()).device
    return torch.cat([vae.encode(_pixels(chunk).to(device)).latent_dist.mode().cpu() for chunk in images.split(256)])


def train_unet(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    prompts: Tensor,
    latents: Tensor,
    labels: Tensor,
    recipe: Recipe,
    place: Checkpointing | None = None,
) -> tuple[nn.ModuleDict, list[dict[str, float]]]:
    """prompts: int64 [classes + 1, templates, tokens], the last row the empty prompt; latents scaled, labels int64 [N].

    Returns the EMA of both networks and the loss curve. Goes on from a checkpoint.
    """
    place, scheduler = place or Checkpointing(), build_scheduler()
    nets = nn.ModuleDict({"unet": unet, "text": text})
    ema = copy.deepcopy(nets).requires_grad_(False)
    descent = _Descent(recipe.unet_lr, recipe.unet_steps, weight_decay=0.01, final_div_factor=100)
    run = _Run("unet", nets, descent, recipe, place, ema)
    prompts, latents, labels = (tensor.to(run.device) for tensor in (prompts, latents, labels))
    weights = _min_snr(scheduler, recipe.snr_gamma).to(run.device) if recipe.snr_gamma else None

    def step() -> dict[str, Tensor]:
        rows = run.integers(len(latents))
        tokens = pick_prompts(prompts, labels[rows], recipe.text_dropout, run.generator)
        noise = torch.randn(latents[rows].shape, generator=run.generator, device=run.device)
        timesteps = run.integers(TIMESTEPS)
        noisy = scheduler.add_noise(latents[rows], noise, timesteps)
        with run.autocast():
            prediction = unet(noisy, timesteps, text(tokens)[0]).sample
        each = F.mse_loss(prediction.float(), noise, reduction="none").mean((1, 2, 3))
        return {"loss": each.mean() if weights is None else (each * weights[timesteps]).mean()}

    return ema, run.train(step)


def _min_snr(scheduler: DDIMScheduler, gamma: float) -> Tensor:
    """float32 [TIMESTEPS]: min(SNR, gamma) / SNR, the weights of noise prediction."""
    kept = scheduler.alphas_cumprod
    snr = kept / (1 - kept)
    return snr.clamp(max=gamma) / snr


def pick_prompts(prompts: Tensor, labels: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """A random template per image; the empty prompt with probability `dropout`. Returns int64 [B, tokens].

    All on one device, the generator too.
    """
    empty = torch.rand(len(labels), generator=generator, device=labels.device) < dropout
    rows = torch.where(empty, len(prompts) - 1, labels)
    return prompts[rows, torch.randint(prompts.shape[1], (len(labels),), generator=generator, device=labels.device)]


def save_pipeline(
    folder: Path, vae: nn.Module, unet: nn.Module, text: nn.Module, tokenizer: Any, scheduler: Any
) -> None:
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


@dataclass(frozen=True)
class _Descent:
    lr: float
    steps: int
    weight_decay: float = 0.0
    final_div_factor: float = 1e4


class _Run:
    """One training run: AdamW, one-cycle learning rate, EMA, loss curve, checkpoints with the random state."""

    def __init__(
        self,
        name: str,
        net: nn.Module,
        descent: _Descent,
        recipe: Recipe,
        place: Checkpointing,
        ema: nn.Module | None = None,
    ) -> None:
        self.name, self.net, self.recipe, self.place, self.ema = name, net, recipe, place, ema
        self.device, self.steps = next(net.parameters()).device, descent.steps
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=descent.lr, weight_decay=descent.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            descent.lr,
            total_steps=descent.steps,
            pct_start=0.05,
            final_div_factor=descent.final_div_factor,
        )
        self.generator = torch.Generator(self.device).manual_seed(recipe.seed + (name != "vae"))
        self.curve, self.step = Curve(name), 0
        self._resume()

    def train(self, losses: Callable[[], dict[str, Tensor]]) -> list[dict[str, float]]:
        while self.step < self.steps:
            found = losses()
            self._apply(found["loss"])
            shown = {key: value for key, value in found.items() if key != "loss"} or found
            self.curve.add(self.step, self.steps, **shown)
            self.step += 1
            self.place.job.progress(f"pretraining {self.name}", self.step, self.steps)
            stopping = self.place.job.stop_signal() is not None
            if self.step % self.place.every == 0 or self.step == self.steps or stopping:
                self._save()
            if stopping:
                self.place.job.stop_if_asked(f"{self.name} checkpoint at step {self.step} of {self.steps}")
        return self.curve.points

    def integers(self, below: int) -> Tensor:
        """int64 [batch] in [0, below), on the device: a GPU would wait for draws and images from the CPU."""
        return torch.randint(below, (self.recipe.batch,), generator=self.generator, device=self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.place.bf16)

    def _apply(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        if self.ema is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
            kept, new = list(self.ema.parameters()), [p.detach() for p in self.net.parameters()]
            get_ema_multi_avg_fn(decay)(kept, new, 0)

    def _settings(self) -> str:
        """Of what decides these weights: the VAE knows nothing of the UNet that is trained on it."""
        recipe = asdict(self.recipe)
        known = {key: recipe[key] for key in recipe if self.name != "vae" or key not in _UNET_ONLY}
        return hash_json([self.name, known, [list(p.shape) for p in self.net.parameters()]])

    def _save(self) -> None:
        if self.place.folder is None:
            return
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in (self.ema.state_dict() if self.ema else {}).items()}
        tensors |= {**optimizer_tensors(self.optimizer), "random": self.generator.get_state()}
        groups = [{k: group[k] for k in ("lr", "betas")} for group in self.optimizer.param_groups]
        state = {"settings": self._settings(), "schedule": self.schedule.state_dict(), "groups": groups}
        save_checkpoint(
            self.place.folder / self.name, self.step, tensors, {**state, "curve": self.curve.points}, keep=1
        )

    def _resume(self) -> None:
        found = load_checkpoint(self.place.folder / self.name, self._settings()) if self.place.folder else None
        if found is None:
            return
        tensors, state = found
        for prefix, net in (("net.", self.net), ("ema.", self.ema)):
            if net is not None:
                net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        restore_optimizer(self.optimizer, tensors)
        self.schedule.load_state_dict(state["schedule"])
        for group, kept in zip(self.optimizer.param_groups, state["groups"], strict=True):
            group.update(lr=kept["lr"], betas=tuple(kept["betas"]))
        self.generator.set_state(tensors["random"])
        self.curve.points, self.step = state["curve"], state["step"]


class Curve:
    """Averages losses over the last stretch of steps, keeps about fifty points, logs them."""

    def __init__(self, name: str) -> None:
        self.name, self.points, self._window = name, [], []

    def add(self, step: int, total: int, **losses: Tensor) -> None:
        self._window.append({key: value.detach() for key, value in losses.items()})
        if (step + 1) % max(1, total // POINTS) and step + 1 != total:
            return
        mean = {key: round(float(np.mean([float(w[key]) for w in self._window])), 5) for key in losses}
        self.points.append({"step": step + 1, **mean})
        self._window.clear()
        log.info("%s step %d/%d %s", self.name, step + 1, total, mean)


def _pixels(images: Tensor) -> Tensor:
    """uint8 becomes float32 in [-1, 1]; float stays as it is."""
    return images.float().div(127.5).sub(1) if images.dtype == torch.uint8 else images
