from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dcdm_cli.data.digits import digit_images
from dcdm_cli.data.images import DecodeOptions, decode_options, set_decode_options
from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.latents import Decode, decode_latents, encode_latents, released, to_pixels, torch_decoder


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.fromarray(image).convert("RGB") for image in digit_images()[0][:5]]


def test_pixels_run_from_minus_one_to_one() -> None:
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    pixels = to_pixels([white, black], 8)
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0], torch.ones(3, 8, 8))
    assert torch.equal(pixels[1], -torch.ones(3, 8, 8))


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (33, 32)])
def test_the_middle_square_of_an_image_is_kept(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    image.paste("red", (left, top, left + 32, top + 32))
    red = to_pixels([image], 32)[0, 1:, 1:-1, 1:-1]
    assert red.max() < -0.95


def test_a_panorama_is_cropped_before_it_is_enlarged() -> None:
    assert to_pixels([Image.new("RGB", (60_000, 2))], 512).shape == (1, 3, 512, 512)


def test_images_come_back_from_their_latents(tiny: BaseModel, pictures: list[Image.Image]) -> None:
    latents = encode_latents(tiny.vae, to_pixels(pictures, 32))
    images = decode_latents(torch_decoder(tiny.vae), latents, chunk=8)
    assert latents.shape == (5, 4, 8, 8) and latents.dtype == torch.float32
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.uint8
    difference = np.abs(images.astype(int) - np.stack([np.asarray(p) for p in pictures]))
    assert difference.mean() < 12


def test_latents_have_about_unit_variance(tiny: BaseModel, pictures: list[Image.Image]) -> None:
    assert 0.5 < encode_latents(tiny.vae, to_pixels(pictures, 32)).std() < 1.5


def test_an_image_always_has_the_same_latents(tiny: BaseModel, pictures: list[Image.Image]) -> None:
    pixels = to_pixels(pictures, 32)
    assert torch.equal(encode_latents(tiny.vae, pixels), encode_latents(tiny.vae, pixels))


def test_decoding_in_chunks_changes_nothing(tiny: BaseModel) -> None:
    latents, decode = torch.randn(5, 4, 8, 8), torch_decoder(tiny.vae)
    together, alone = (decode_latents(decode, latents, chunk).astype(int) for chunk in (5, 2))
    assert np.abs(together - alone).max() <= 1  # a rounding step: kernels differ with the batch


@pytest.fixture
def latents(tiny: BaseModel, pictures: list[Image.Image]) -> torch.Tensor:
    return encode_latents(tiny.vae, to_pixels(pictures, 32))


def test_half_precision_decodes_the_same_pictures(tiny: BaseModel, latents: torch.Tensor) -> None:
    whole, half = (
        decode_latents(torch_decoder(tiny.vae, dtype), latents, 8) for dtype in (torch.float32, torch.bfloat16)
    )
    difference = np.abs(whole.astype(int) - half)
    assert 0 < difference.mean() < 1 and difference.max() <= 12
    assert tiny.vae.dtype == torch.float32


def test_an_image_that_overflows_is_decoded_in_float32_and_it_alone(tiny: BaseModel, latents: torch.Tensor) -> None:
    decode, exact = torch_decoder(tiny.vae, torch.float16), torch_decoder(tiny.vae)
    usual = decode(latents)
    large = latents.clone()
    large[2] *= 1e6  # beyond float16's 65,504
    made = decode(large)
    assert torch.isfinite(made).all()
    assert torch.equal(made[2], exact(large[2:3])[0])
    others = [0, 1, 3, 4]
    assert torch.equal(made[others], usual[others]) and not torch.equal(made[others], exact(large)[others])


def test_a_compiled_decoder_sees_one_batch_and_gives_every_one(tiny: BaseModel, latents: torch.Tensor) -> None:
    seen: list[int] = []

    def watched(module: torch.nn.Module) -> Decode:
        def run(rows: torch.Tensor) -> torch.Tensor:
            seen.append(len(rows))
            return module(rows)

        return run

    decode, exact = torch_decoder(tiny.vae, compiled=watched), torch_decoder(tiny.vae)
    for rows in (latents, latents[:2], latents[3:4]):
        assert torch.allclose(decode(rows), exact(rows), atol=1e-5)
    assert seen == [len(latents)] * 3
    released(decode)  # memory ran out: the batch is smaller from now on
    assert torch.allclose(decode(latents[:2]), exact(latents[:2]), atol=1e-5) and seen[-1] == 2
    half = torch_decoder(tiny.vae, torch.float16, watched)
    large = latents * torch.tensor([1.0, 1e6, 1.0, 1.0, 1.0]).reshape(-1, 1, 1, 1)
    assert torch.isfinite(half(large)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_becomes_a_blank_one_and_its_neighbours_stay(value: float) -> None:
    """As bytes nothing would tell it from a picture: one bad pixel, and the image is given up as a whole."""
    latents = torch.rand(3, 4, 2, 2)

    def decode(part: torch.Tensor) -> torch.Tensor:
        images = torch.linspace(-1, 1, len(part) * 48).reshape(len(part), 3, 4, 4).clone()
        images[1, 0, 2, 2] = value
        return images

    made = decode_latents(decode, latents, 3)
    assert made[1].std() == 0 and made[0].std() > 1 and made[2].std() > 1


def test_the_whole_of_a_wide_image_is_seen_where_the_run_says_so() -> None:
    wide = Image.new("RGB", (64, 16), "black")
    wide.paste("white", (0, 0, 8, 16))
    before = decode_options()
    try:
        seen = {}
        for fit in ("crop", "pad", "stretch"):
            set_decode_options(DecodeOptions(fit=fit, background="black"))
            seen[fit] = to_pixels([wide], 16)[0, 0]
    finally:
        set_decode_options(before)
    assert (seen["crop"] == -1).all()
    assert (seen["stretch"][:, 0] > 0.9).all() and (seen["stretch"][:, 8:] < -0.9).all()
    assert (seen["pad"][:5] < -0.9).all() and seen["pad"][8, 0] > 0.9
