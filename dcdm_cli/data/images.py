"""Decoding: the one way an image file enters the program.

A file or its bytes come in; an 8-bit RGB image leaves, or `RejectedImage` with a reason code. Safe in threads.
"""

from __future__ import annotations

import ctypes
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dcdm_cli.data.archives import MAX_IMAGE, member_place, read_range
from dcdm_cli.files import hash_bytes

# Everything else Pillow opens by default (EPS, PDF, PSD, FITS, ...) has no business in an image set.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_UINT16_MAX = 65535
LONG = 2.0  # longer to shorter side: of an image beyond it, the middle square is less than half
_STRETCHED = 1024  # pixels per side that a stretched image need not go beyond, for the sake of memory


@dataclass(frozen=True)
class DecodeOptions:
    """What is accepted and how it becomes RGB. Sizes in pixels.

    exif: rotate as the camera says; turn off to match a classifier trained without. background: any Pillow colour, put
    behind transparent pixels. animated: take the first frame of an animation or multi-page file, or reject it.
    value_range: what is black and what is white in grey images of more than 8 bits; None = 0 to 65535, for floats 0 to
    1. fit: how an image becomes a square, see `as_square`. reduce_to: pixels on the shorter side that classifiers and
    fine-tuning see at most; None = all of them.
    """

    max_pixels: int = 64_000_000
    min_size: int = 1
    max_aspect: float = 100.0
    exif: bool = True
    background: str = "white"
    animated: Literal["first", "reject"] = "first"
    value_range: tuple[float, float] | None = None
    fit: Literal["auto", "crop", "pad", "stretch"] = "auto"
    reduce_to: int | None = None


class _PillowLimit:
    """Pillow's own limit of pixels, of which it has one for the whole process: no lower than what is allowed to the
    images that are being decoded at the moment, each of which our own check holds to what is allowed to it."""

    def __init__(self) -> None:
        self._lock, self._under_way, self._usual = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def allowing(self, pixels: int) -> Iterator[None]:
        raised = self._raise(pixels)
        try:
            yield
        finally:
            if raised:
                self._give_back()

    def _raise(self, pixels: int) -> bool:
        """Whether there was anything to raise."""
        with self._lock:
            if not self._under_way:
                self._usual = Image.MAX_IMAGE_PIXELS
            if self._usual is None or pixels <= self._usual:  # None: somebody has switched the limit off
                return False
            self._under_way += 1
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, pixels)
            return True

    def _give_back(self) -> None:
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                Image.MAX_IMAGE_PIXELS = self._usual


_PILLOW, _ANY = _PillowLimit(), 2**62


class RejectedImage(Exception):
    """An image that cannot be used. reason: a stable code for counting; detail: a sentence for people.

    Codes raised here: not_an_image, truncated, unreadable, too_large, too_small, extreme_aspect, bad_range, animated.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


DEFAULT_OPTIONS = DecodeOptions()
_run_options = DEFAULT_OPTIONS


def set_decode_options(options: DecodeOptions) -> None:
    """How this process decodes from now on: one run has one convention, from the scan to the last classifier."""
    global _run_options
    _run_options = options


def decode_options() -> DecodeOptions:
    """What `set_decode_options` said; hand it to worker processes."""
    return _run_options


def decoding_so(
    options: DecodeOptions, open_worker: Callable[[str, Callable[[], bool]], Any], device: str, stop: Callable[[], bool]
) -> Any:
    """A partial of this with options and an opener opens workers that decode as their coordinator does."""
    set_decode_options(options)
    return open_worker(device, stop)


def decode_image(source: Path | bytes, options: DecodeOptions | None = None) -> Image.Image:
    """Decodes every pixel and returns mode RGB. options None: the run's. A path may name a member of a tar.

    `info["deep_peak"]` of an image that was grey with more than 8 bits is its largest value, as a share of the range;
    `info["animated"]` says whether there are more frames or pages than the first, which is what comes back.

    Raises RejectedImage, and no other error, for a bad file.
    """
    options = options or _run_options
    if isinstance(source, Path):
        source = _member_bytes(source)
    if isinstance(source, Path) and not os.path.isfile(source):  # opening a FIFO or a device would block
        raise RejectedImage("unreadable", "missing, or not a regular file")
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with _PILLOW.allowing(options.max_pixels), Image.open(opened, formats=FORMATS) as image:
            _check_header(image, options)
            if image.format == "TIFF":
                _silence_libtiff()
            animated = _is_animated(image)
            image.load()
            if options.exif:
                ImageOps.exif_transpose(image, in_place=True)
            decoded = _to_rgb(image, options)
            decoded.info["animated"] = animated
            return decoded
    except (RejectedImage, MemoryError):  # memory is no fault of the file
        raise
    except Exception as error:  # damaged files make Pillow raise OSError, ValueError, SyntaxError, struct.error, ...
        raise _rejection(error) from error


@cache
def _silence_libtiff() -> None:
    """The C library writes of every odd tag to stderr, past Python; what matters reaches us as an exception anyway."""
    packages = Path(PIL.__file__).parents[1]
    # As wheels for Linux and for macOS have it beside them; a system's library stays as it is.
    for file in (*packages.glob("pillow.libs/libtiff*"), *packages.glob("PIL/.dylibs/libtiff*")):
        library = ctypes.CDLL(str(file))  # the copy that Pillow has loaded already
        for name in ("TIFFSetWarningHandler", "TIFFSetErrorHandler"):
            getattr(library, name)(None)


def image_bytes(path: Path) -> bytes:
    """An image as it lies on the disk, or in its tar. Raises RejectedImage for one that cannot be read."""
    found = _member_bytes(path)
    if isinstance(found, bytes):
        return found
    if not os.path.isfile(found):  # opening a FIFO or a device would block
        raise RejectedImage("unreadable", "missing, or not a regular file")
    try:
        return found.read_bytes()
    except OSError as error:
        raise RejectedImage("unreadable", str(error)) from error


def _member_bytes(path: Path) -> Path | bytes:
    """The bytes of a tar's member; the path as it is for an ordinary file."""
    place = member_place(path)
    if place is None or os.path.isfile(path):  # an ordinary file may be called like a member
        return path
    try:
        return read_range(place.tar, place.offset, place.size)
    except ValueError as error:
        raise RejectedImage("too_large" if place.size > MAX_IMAGE else "truncated", str(error)) from error
    except OSError as error:
        raise RejectedImage("unreadable", str(error)) from error


def shown_by(options: DecodeOptions | None = None) -> str:
    """A name for how `as_square` shows images, "" as they are by default: what was seen of them holds for that alone,
    and a hash of their pixels does not tell. options None: the run's."""
    options = options or _run_options
    # elsewhere the background is in the pixels, and so in their hash
    names = ("fit", "reduce_to", *(("background",) if options.fit == "pad" else ()))
    shown = {name: getattr(options, name) for name in names}
    usual = {name: getattr(DEFAULT_OPTIONS, name) for name in names}
    return "" if shown == usual else hash_bytes(repr(sorted(shown.items())).encode())[:8]


def as_square(image: Image.Image, options: DecodeOptions | None = None) -> Image.Image:
    """What classifiers and fine-tuning are shown of an image, before they resize it. options None: the run's.

    crop: the image as it is, of which they take the middle square. pad: the whole image, with bars of the background's
    colour. stretch: the whole image, distorted to a square. auto: crop, except where that would leave out more than
    half (`LONG`): stretch, since what an image is of need not stand in its middle, and bars would leave it few pixels.
    `reduce_to` then takes detail away that a generator of so many pixels cannot give: without it, what is generated
    would look blurred beside what is real, and so be harder.
    """
    options = options or _run_options
    return _reduced(_squared(image, options), options.reduce_to)


def _reduced(image: Image.Image, side: int | None) -> Image.Image:
    shorter = min(image.size)
    if side is None or shorter <= side:
        return image
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    # reducing_gap: Pillow first reduces by a whole factor, and from 3 on it documents no visible difference.
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _squared(image: Image.Image, options: DecodeOptions) -> Image.Image:
    width, height = image.size
    long = max(width, height) > LONG * min(width, height)
    fit = options.fit if options.fit != "auto" else "stretch" if long else "crop"
    if fit == "crop" or width == height:
        return image
    if fit == "pad":
        side = max(width, height)
        return ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=options.background)
    # never below the shorter side, along which nothing has to be given up
    side = max(min(width, height), min(max(width, height), _STRETCHED))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def image_format(content: bytes) -> str:
    """Pillow's name of the format, from the header alone: "JPEG", "PNG", ..."""
    with _PILLOW.allowing(_ANY), Image.open(io.BytesIO(content), formats=FORMATS) as image:  # any size: only the header
        return image.format or "PNG"


def image_hash(image: Image.Image) -> str:
    """Hash of the size and the RGB bytes: equal for equal pictures, whatever file they came from."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    # With the size: 2x8 and 4x4 pixels may have the same bytes.
    return hash_bytes(f"{rgb.width}x{rgb.height}".encode(), rgb.tobytes())


def _check_header(image: Image.Image, options: DecodeOptions) -> None:
    """Runs before any pixel is decoded, so that a bomb costs nothing."""
    width, height = image.size
    if width * height > options.max_pixels:
        raise RejectedImage(
            "too_large", f"{width}x{height} is more than {options.max_pixels} pixels; --max-pixels N allows more"
        )
    if min(width, height) < options.min_size:
        raise RejectedImage("too_small", f"{width}x{height}, the shorter side must have {options.min_size} pixels")
    if max(width, height) > options.max_aspect * min(width, height):
        raise RejectedImage("extreme_aspect", f"{width}x{height} is longer than {options.max_aspect:g} to 1")
    if options.animated == "reject" and _is_animated(image):
        raise RejectedImage("animated", "more than one frame or page")


def _is_animated(image: Image.Image) -> bool:
    """A camera's MPO is a photo with a preview behind it, not an animation."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _rejection(error: Exception) -> RejectedImage:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return RejectedImage("too_large", f"{error} --max-pixels N allows more")
    if isinstance(error, UnidentifiedImageError):
        return RejectedImage("not_an_image", f"none of {', '.join(FORMATS)}")
    # Pillow has no error of its own for it, only the word.
    reason = "truncated" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "unreadable"
    return RejectedImage(reason, str(error) or type(error).__name__)


def _to_rgb(image: Image.Image, options: DecodeOptions) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(image, options.value_range)
    if image.has_transparency_data:
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, options.background), front).convert("RGB")
    if image.mode == "CMYK":
        return _from_cmyk(image)
    # A copy, because `image` belongs to a file that is about to close.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    """Float grey must lie in [0, 1], integer grey in [0, 65535], or both in the range that was given; Pillow's own
    conversion clips to white."""
    grey = np.asarray(image).astype(np.float64)
    low, high = value_range or (0.0, 1.0 if image.mode == "F" else float(_UINT16_MAX))
    if not (grey.min() >= low and grey.max() <= high):  # written so that NaN fails
        found = f"values {grey.min():g} to {grey.max():g} are not in {low:g} to {high:g}"
        raise RejectedImage("bad_range", f"{found}; --value-range LOW,HIGH says what they lie in")
    share = (grey - low) / (high - low)
    decoded = Image.fromarray(np.rint(share * 255).astype(np.uint8)).convert("RGB")
    decoded.info["deep_peak"] = float(share.max())
    return decoded


def _from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that does not fit its pixels: better colours without it than no image
    return image.convert("RGB")
