"""The image zoo: every odd file gets pixels or a reason, and never another exception."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from dcdm_cli.data.images import DecodeOptions, RejectedImage, as_square, decode_image, image_format, image_hash

from .conftest import encoded, picture


def reason(source: bytes | Path, **options: object) -> str:
    with pytest.raises(RejectedImage) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode_image(source, DecodeOptions(**options))  # type: ignore[arg-type]
    return caught.value.reason


def pixels(source: bytes, **options: object) -> np.ndarray:
    image = decode_image(source, DecodeOptions(**options))  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def flat(mode: str, color: object, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_every_accepted_format_decodes(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = pixels(encoded(picture(), kind, **options))
    assert decoded.shape == (8, 12, 3)
    if kind in ("PNG", "BMP", "TIFF", "WEBP"):
        assert (decoded == np.asarray(picture())).all()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<html></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0"],
)
def test_what_is_no_image_is_named_so(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    assert reason(file) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_file_is_truncated(kind: str) -> None:
    content = encoded(picture(size=(64, 64)), kind)
    assert reason(content[: len(content) // 2]) == "truncated"


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_half_a_file_is_rejected(kind: str) -> None:
    content = encoded(picture(size=(64, 64)), kind)
    assert reason(content[: len(content) // 2]) in {"unreadable", "not_an_image", "truncated"}


def test_a_flipped_bit_in_a_png_is_found() -> None:
    content = bytearray(encoded(picture(size=(64, 64))))
    content[len(content) // 2] ^= 1
    assert reason(bytes(content)) == "unreadable"


def test_bytes_after_the_end_do_no_harm() -> None:
    assert pixels(encoded(picture()) + b"trailing").shape == (8, 12, 3)


def test_size_limits_hold_before_any_pixel_is_decoded() -> None:
    assert reason(png_header(9000, 9000)) == "too_large"
    assert reason(png_header(60_000, 60_000)) == "too_large"  # Pillow's own bomb error
    assert reason(encoded(picture()), max_pixels=95) == "too_large"
    with pytest.raises(RejectedImage, match="--max-pixels N allows more"):
        decode_image(encoded(picture()), DecodeOptions(max_pixels=95))
    assert pixels(encoded(picture()), max_pixels=96).size == 96 * 3
    assert Image.MAX_IMAGE_PIXELS == (1024 * 1024 * 1024 // 4 // 3)


def test_a_bomb_warning_turned_into_an_error_is_too_large() -> None:
    with warnings.catch_warnings(), pytest.raises(RejectedImage, match="--max-pixels N allows more") as caught:
        warnings.simplefilter("error")
        decode_image(png_header(10_000, 10_000))
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("usual", [40, 80])  # 96 pixels: an error of Pillow's, or a warning
def test_what_the_setting_allows_pillow_allows_too_and_nothing_beyond(
    usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", usual)
    assert pixels(encoded(picture()), max_pixels=96).size == 96 * 3
    assert image_format(encoded(picture())) == "PNG"
    assert usual == Image.MAX_IMAGE_PIXELS, "whatever else opens images keeps its guard"
    assert reason(encoded(picture()), max_pixels=95) == "too_large"
    assert reason(b"no image at all", max_pixels=96) == "not_an_image" and usual == Image.MAX_IMAGE_PIXELS


def test_threads_that_decode_at_once_leave_pillows_limit_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    content = encoded(picture())
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda number: pixels(content, max_pixels=96 + number).size, range(200)))
    assert sizes == [96 * 3] * 200 and Image.MAX_IMAGE_PIXELS == 40


def test_small_and_thin_images() -> None:
    assert pixels(encoded(flat("RGB", "red", (1, 1)))).shape == (1, 1, 3)
    assert reason(encoded(flat("RGB", "red", (1, 1))), min_size=2) == "too_small"
    assert reason(encoded(flat("RGB", "red", (1, 101)))) == "extreme_aspect"
    assert pixels(encoded(flat("RGB", "red", (1, 100)))).shape == (100, 1, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = pixels(encoded(Image.fromarray(ramp), kind))
    assert (decoded[..., 0].ravel() == np.arange(256)).all()


def test_32_bit_grey_must_fit_16_bits() -> None:
    ramp = np.array([[0, 32768, 65535]], dtype=np.int32)
    assert pixels(encoded(Image.fromarray(ramp), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert reason(encoded(Image.fromarray(ramp - 1), "TIFF")) == "bad_range"


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 255.0], None), ([np.nan], None)]
)
def test_float_grey_must_lie_in_0_to_1(values: list[float], expected: list[int] | None) -> None:
    content = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    if expected is None:
        assert reason(content) == "bad_range"
    else:
        assert pixels(content)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("mode", "clear"), [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_pixels_show_the_background(mode: str, clear: tuple[int, ...]) -> None:
    content = encoded(flat(mode, clear))
    assert (pixels(content) == 255).all()
    assert (pixels(content, background="#102030") == [16, 32, 48]).all()


def test_half_transparent_pixels_are_blended() -> None:
    assert pixels(encoded(flat("RGBA", (0, 0, 0, 51))))[0, 0].tolist() == [204, 204, 204]


@pytest.mark.parametrize(("mode", "transparency"), [("P", 0), ("L", 0), ("RGB", (0, 0, 0)), ("P", b"\0")])
def test_a_transparent_colour_counts_as_transparency(mode: str, transparency: object) -> None:
    assert (pixels(encoded(flat(mode, 0), transparency=transparency)) == 255).all()


def test_palette_and_one_bit_images() -> None:
    assert (pixels(encoded(flat("RGB", "red").convert("P"), "GIF"))[..., 0] == 255).all()
    assert (pixels(encoded(flat("1", 1))) == 255).all()


def test_cmyk_becomes_the_right_colour() -> None:
    red = pixels(encoded(flat("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", quality=95))
    assert red[..., 0].min() > 240 and red[..., 1:].max() < 15


def test_cmyk_with_a_profile_that_does_not_fit_is_still_read() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (profile, b"not a profile"):
        assert pixels(encoded(flat("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", icc_profile=icc)).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame_or_are_rejected(kind: str) -> None:
    frames = [flat("RGB", color, (8, 8)) for color in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(content) == [255, 0, 0]).all()
    assert reason(content, animated="reject") == "animated"
    assert pixels(encoded(frames[0], kind), animated="reject").shape == (8, 8, 3)


def test_a_photo_with_a_preview_is_no_animation() -> None:
    content = encoded(picture(), "MPO", save_all=True, append_images=[picture(1)])
    assert pixels(content, animated="reject").shape == (8, 12, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    content = encoded(picture(), kind, exif=exif)
    assert pixels(content).shape == (12, 8, 3)
    assert pixels(content, exif=False).shape == (8, 12, 3)


def test_a_text_chunk_that_unpacks_to_megabytes_is_only_rejected() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    assert reason(encoded(picture(), pnginfo=info)) == "unreadable"


def test_missing_files_folders_and_pipes_are_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "nothing.png", tmp_path, tmp_path / "pipe.png"):
        assert reason(path) == "unreadable"


def test_path_and_bytes_decode_alike(tmp_path: Path) -> None:
    file = tmp_path / "a[1] \n é.png"
    file.write_bytes(encoded(picture()))
    assert image_hash(decode_image(file)) == image_hash(decode_image(file.read_bytes()))


def test_the_hash_is_of_the_picture_not_of_the_file() -> None:
    png, bmp = decode_image(encoded(picture())), decode_image(encoded(picture(), "BMP"))
    assert image_hash(png) == image_hash(bmp)
    assert image_hash(png) != image_hash(Image.frombytes("RGB", (8, 12), png.tobytes()))
    assert image_hash(flat("L", 7)) == image_hash(flat("RGB", (7, 7, 7)))


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), data=st.data())
def test_damaged_bytes_raise_nothing_else(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(picture(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert decode_image(bytes(content[:cut])).mode == "RGB"
        except RejectedImage as error:
            assert error.reason and io.StringIO(error.detail)


def test_a_damaged_tiff_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff is C and prints past Python."""
    content = bytearray(encoded(picture(size=(64, 64)), "TIFF", compression="tiff_lzw"))
    content[20:4000:7] = bytes(byte ^ 0x5A for byte in content[20:4000:7])
    assert reason(bytes(content)) == "unreadable"
    assert capfd.readouterr() == ("", "")


def test_the_range_of_deep_grey_can_be_said() -> None:
    ramp = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    twelve = encoded(Image.fromarray(ramp))
    assert pixels(twelve).max() == 16
    assert (pixels(twelve, value_range=(0, 4095))[..., 0].ravel() == np.arange(256)).all()
    assert reason(twelve, value_range=(0, 1023)) == "bad_range"
    celsius = encoded(Image.fromarray(np.array([[-20.0, 0.0, 60.0]], np.float32)), "TIFF")
    assert reason(celsius) == "bad_range"
    assert pixels(celsius, value_range=(-20, 60))[0, :, 0].tolist() == [0, 64, 255]


def test_squares_show_the_middle_all_of_it_or_all_of_it_distorted() -> None:
    wide = Image.fromarray(np.repeat(np.array([[10, 200]], np.uint8), [60, 4], 1).repeat(8, 0)).convert("RGB")
    cropped, padded, stretched = (
        np.asarray(as_square(wide, DecodeOptions(fit=fit, background="black"))) for fit in ("crop", "pad", "stretch")
    )
    assert cropped.shape == (8, 64, 3)
    assert padded.shape == stretched.shape == (64, 64, 3)
    assert (padded[28:36] == np.asarray(wide)).all() and not padded[:28].any() and not padded[36:].any()
    assert (stretched[:, :58] == 10).all() and (stretched[:, 62:] == 200).all()
    assert as_square(Image.new("RGB", (5, 5)), DecodeOptions(fit="pad")).size == (5, 5)


@pytest.mark.parametrize("size", [(64, 8), (8, 64)])
def test_by_itself_the_whole_is_shown_where_the_middle_would_be_less_than_half(size: tuple[int, int]) -> None:
    assert as_square(Image.new("RGB", size)).size == (64, 64)
    usual = Image.new("RGB", (16, 8))
    assert as_square(usual) is usual


@pytest.mark.parametrize(
    "size, fit, seen", [((64, 64), "crop", (32, 32)), ((128, 64), "crop", (64, 32)), ((128, 64), "pad", (32, 32))]
)
def test_what_classifiers_see_can_be_reduced_to_what_a_generator_makes(
    size: tuple[int, int], fit: Literal["crop", "pad"], seen: tuple[int, int]
) -> None:
    assert as_square(Image.new("RGB", size), DecodeOptions(fit=fit, reduce_to=32)).size == seen


def test_smaller_images_are_not_enlarged_by_it() -> None:
    small = Image.new("RGB", (20, 30), "red")
    assert as_square(small, DecodeOptions(reduce_to=32)) is small
