"""Pixels <-> latents. Images are uint8 [B, H, W, 3]; latents are float32 [B, 4, h, w], scaled to unit variance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from dcdm_cli.data.images import as_square
from dcdm_cli.model.unscaled import drop_unit_scales

Decode = Callable[[Tensor], Tensor]  # scaled latents float32 [B, 4, h, w] -> float32 [B, 3, H, W] in about [-1, 1]


def to_pixels(images: list[Image.Image], size: int) -> Tensor:
    """RGB images -> float32 [B, 3, size, size] in [-1, 1]: the middle square of what `as_square` shows, resized."""
    return torch.stack([_square(image, size) for image in images])


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Scaled latents float32 [B, 4, h, w]: the posterior's mean, so that an image always has the same ones.

    Stable Diffusion's posterior is so narrow that drawing from it changes nothing; a small VAE's is not, and the draws
    would drown the image.
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0]
    return ((posterior.mean - shift_factor(vae)) * vae.config["scaling_factor"]).float()


def torch_decoder(
    vae: AutoencoderKL,
    dtype: torch.dtype = torch.float32,
    compiled: Callable[[torch.nn.Module], Decode] | None = None,
) -> Decode:
    """The VAE's decoder, changed for inference.

    dtype: what it computes in; half precision as `RetriedDecode` says. SDXL's decoder overflows in float16, Stable
    Diffusion 1.5's and 2.1's do not, and none does in bfloat16. compiled: what makes a module's fast twin; all but the
    retries run in that, on batches that are filled up to the largest so far, which is compiled for.
    """
    drop_unit_scales(vae)
    vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # a copy: latents are encoded with the VAE itself, and what overflows is decoded by it once more
    half = vae if dtype == torch.float32 else copy.deepcopy(vae)
    torch.nn.Module.to(half, dtype)  # diffusers' own `to` warns of modules that there are none of
    run = _eager(half) if compiled is None else FilledDecode(compiled(VaeDecoder(half)))
    return run if half is vae else RetriedDecode(run, lambda: _eager(vae))


class VaeDecoder(torch.nn.Module):
    """Scaled latents [B, 4, h, w] -> images [B, 3, H, W], in the VAE's dtype: all that decoding is, as one module."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        unscaled: Any = unscale(self.vae, latents)
        return self.vae.decode(unscaled, return_dict=False)[0]


class RetriedDecode:
    """A decoder in half precision. An image that comes out with NaN or infinity is decoded once more, it alone.

    So an image does not depend on the others of its batch. exact: gives the float32 decoder; called when it is needed.
    """

    def __init__(self, decode: Decode, exact: Callable[[], Decode]) -> None:
        self._decode, self._exact = decode, exact

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        images = self._decode(latents).float()
        broken = ~torch.isfinite(images).flatten(1).all(dim=1)
        if broken.any():
            images[broken] = self._exact()(latents[broken])
        return images

    def release(self) -> None:
        """Gives memory back after it ran out."""
        released(self._decode)


class FilledDecode:
    """A decoder that is compiled for one batch: smaller ones are filled up with their last row, which is dropped."""

    def __init__(self, decode: Decode) -> None:
        self._decode, self._rows = decode, 0

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        count = len(latents)
        # it never shrinks by itself: each new size would be compiled anew
        self._rows = max(self._rows, count)
        rows = torch.cat([latents, latents[-1:].expand(self._rows - count, -1, -1, -1)])
        return self._decode(rows)[:count]

    def release(self) -> None:
        """After memory ran out the batches are smaller."""
        self._rows = 0


def released(part: object) -> None:
    """Tells a denoiser or decoder to give memory back, if it holds any of its own."""
    release = getattr(part, "release", None)
    if release is not None:
        release()


def _eager(vae: AutoencoderKL) -> Decode:
    return torch.inference_mode()(VaeDecoder(vae).forward)


@torch.inference_mode()
def decode_latents(decode: Decode, latents: Tensor, chunk: int) -> np.ndarray:
    """Scaled latents [B, 4, h, w] -> uint8 [B, H, W, 3], `chunk` images at once (decoding is the memory peak)."""
    # bytes chunk by chunk, a quarter of what all images would take as floats
    return torch.cat([_to_bytes(decode(part)) for part in latents.split(chunk)]).cpu().numpy()


def _to_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]. An image with a value that is not finite becomes all black, which
    whoever takes it up rejects as blank: as bytes nothing would tell it from a picture."""
    whole = torch.isfinite(images).flatten(1).all(dim=1)
    images = torch.where(whole[:, None, None, None], images, -1)
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def unscale(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents [B, 4, h, w] -> the ones the VAE decodes, in its dtype."""
    return latents.to(vae.dtype) / vae.config["scaling_factor"] + shift_factor(vae)


def shift_factor(vae: AutoencoderKL) -> float:
    # Stable Diffusion's configs have None, or do not know the word
    return vae.config.get("shift_factor") or 0.0


def _square(image: Image.Image, size: int) -> Tensor:
    array = np.asarray(ImageOps.fit(as_square(image), (size, size), Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).div(127.5).sub(1)
