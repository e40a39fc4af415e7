"""What a set of images looks like as a whole, where that is probably not what the user thinks it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dcdm_cli.data.examine import Examined
from dcdm_cli.data.images import LONG, DecodeOptions

WIDE = 1.5  # longer to shorter side: of an image beyond it more than a third is cropped away
DARK = 0.5  # of the range: above it, nobody has stored 12 bits in 16
_SHARE = 0.01  # of the images, below which oddities are not worth a warning
_UINT16_MAX = 65535


def value_warnings(examined: Examined, options: DecodeOptions) -> Iterator[str]:
    """Values that fill a small part of their range, as those of a 12-bit sensor in 16-bit files do."""
    if examined.deep and examined.deep_peak < DARK:
        largest, range_ = examined.deep_peak * _UINT16_MAX, options.value_range or (0, _UINT16_MAX)
        if options.value_range is None:
            bits = max(1, int(np.ceil(np.log2(largest + 1))))
            said = f"no value above {largest:.0f} of {_UINT16_MAX}"
            advice = f"if the sensor has {bits} bits: --value-range 0,{2**bits - 1}"
        else:
            said = f"values in the lower {examined.deep_peak:.0%} of {range_[0]:g} to {range_[1]:g}"
            advice = "give a narrower --value-range"
        yield f"{examined.deep} deep grey images have {said}: they come out almost black; {advice}"
    if examined.dark > _SHARE * examined.usable:
        yield (
            f"{examined.dark} images are almost black, with no value above an eighth of the range: files of 16 bits "
            "per colour keep their upper 8 only; scale them to the full range first"
        )


def animation_warnings(examined: Examined) -> Iterator[str]:
    """Of animations one frame is seen, which may not be the one that shows the class."""
    if examined.animated:
        have = "image has" if examined.animated == 1 else "images have"
        said = f"{examined.animated} {have} several frames or pages"
        yield f"{said}: the first is used; --animated reject leaves them out"


def shape_warnings(widths: np.ndarray, heights: np.ndarray, options: DecodeOptions) -> Iterator[str]:
    """Images that are shown distorted, or of which the middle square leaves much out. widths, heights: int [N]."""
    if options.fit not in ("auto", "crop") or not len(widths):  # pad and stretch show the whole image, by wish
        return
    ratio = np.maximum(widths, heights) / np.maximum(1, np.minimum(widths, heights))
    long = (ratio > LONG) if options.fit == "auto" else np.zeros(len(ratio), bool)
    if long.mean() > _SHARE:
        yield (
            f"{int(long.sum())} of {len(long)} images are longer than 2 to 1: classifiers and fine-tuning see them "
            "whole, distorted to a square; --fit crop takes the middle, --fit pad adds bars"
        )
    wide = (ratio > WIDE) & ~long
    if wide.mean() > _SHARE:
        lost = float((1 - 1 / ratio[wide]).mean())
        yield (
            f"{int(wide.sum())} of {len(wide)} images are longer than 3 to 2: only their middle square is used, "
            f"{lost:.0%} of them is cropped away on average; --fit pad or --fit stretch shows classifiers and "
            "fine-tuning the whole image"
        )
