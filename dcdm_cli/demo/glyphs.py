"""Drawn digits: the data the demo's base model is pretrained on.

Two sources, mixed: the fonts that matplotlib ships, and stroke skeletons drawn with a pen of varying width.
Both pass through an affine map, an elastic distortion and a random sharpness. No image of the target data
(scikit-learn's digits) is used anywhere here, so that fine-tuning has a domain gap to close. Not from the paper.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.interpolate import splev, splprep

CANVAS = 96
IMAGE_SIZE = 32
FONT_PREFIXES = ("DejaVu", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmtt10")

# Pen paths in the unit square (x right, y down). A digit has variants, a variant has strokes, a stroke is a list of
# points; a spline runs through the points unless the stroke is marked straight.
Stroke = tuple[str, list[tuple[float, float]]]
CURVE, LINE = "curve", "line"
_RING = [(0.5, 0.0), (0.12, 0.2), (0.08, 0.6), (0.3, 0.97), (0.65, 0.97), (0.9, 0.6), (0.85, 0.2), (0.5, 0.0)]
SKELETONS: dict[int, list[list[Stroke]]] = {
    0: [[(CURVE, _RING)], [(CURVE, [(0.7, 0.05), *_RING[:-1], (0.6, 0.08)])]],
    1: [
        [(LINE, [(0.5, 0.0), (0.5, 1.0)])],
        [(LINE, [(0.25, 0.25), (0.55, 0.0), (0.55, 1.0)])],
        [(LINE, [(0.25, 0.25), (0.55, 0.0), (0.55, 1.0)]), (LINE, [(0.25, 1.0), (0.85, 1.0)])],
        [(LINE, [(0.1, 0.45), (0.6, 0.0), (0.6, 1.0)])],
    ],
    2: [
        [
            (CURVE, [(0.15, 0.25), (0.45, 0.0), (0.8, 0.2), (0.65, 0.55), (0.15, 1.0)]),
            (LINE, [(0.15, 1.0), (0.9, 1.0)]),
        ],
        [
            (
                CURVE,
                [(0.15, 0.2), (0.5, 0.0), (0.8, 0.25), (0.5, 0.7), (0.15, 0.95), (0.2, 0.75), (0.5, 0.88), (0.9, 0.95)],
            )
        ],
    ],
    3: [
        [
            (
                CURVE,
                [(0.15, 0.12), (0.5, 0.0), (0.8, 0.2), (0.45, 0.47), (0.85, 0.72), (0.5, 1.0), (0.12, 0.88)],
            )
        ],
        [
            (LINE, [(0.15, 0.0), (0.8, 0.0), (0.45, 0.42)]),
            (CURVE, [(0.45, 0.42), (0.85, 0.65), (0.6, 0.98), (0.12, 0.9)]),
        ],
        [
            (CURVE, [(0.15, 0.12), (0.5, 0.0), (0.8, 0.2), (0.45, 0.45)]),
            (CURVE, [(0.45, 0.45), (0.88, 0.7), (0.5, 1.0), (0.12, 0.88)]),
            (LINE, [(0.25, 0.46), (0.7, 0.46)]),
        ],
    ],
    4: [
        [(LINE, [(0.45, 0.0), (0.1, 0.6), (0.95, 0.6)]), (LINE, [(0.7, 0.3), (0.65, 1.0)])],
        [(LINE, [(0.65, 1.0), (0.65, 0.0), (0.1, 0.65), (0.95, 0.65)])],
        [(CURVE, [(0.2, 0.0), (0.12, 0.4), (0.4, 0.52), (0.85, 0.45)]), (LINE, [(0.8, 0.0), (0.75, 1.0)])],
    ],
    5: [
        [
            (LINE, [(0.85, 0.0), (0.25, 0.0), (0.2, 0.45)]),
            (CURVE, [(0.2, 0.45), (0.6, 0.38), (0.85, 0.68), (0.55, 0.98), (0.1, 0.92)]),
        ],
        [
            (CURVE, [(0.25, 0.05), (0.2, 0.45), (0.6, 0.42), (0.82, 0.7), (0.5, 1.0), (0.12, 0.88)]),
            (LINE, [(0.25, 0.03), (0.9, 0.0)]),
        ],
    ],
    6: [
        [
            (
                CURVE,
                [(0.7, 0.0), (0.3, 0.3), (0.15, 0.7), (0.45, 1.0), (0.82, 0.75), (0.55, 0.5), (0.2, 0.68)],
            )
        ],
        [
            (
                CURVE,
                [(0.4, 0.0), (0.2, 0.4), (0.2, 0.8), (0.5, 1.0), (0.8, 0.8), (0.6, 0.55), (0.22, 0.75)],
            )
        ],
    ],
    7: [
        [(LINE, [(0.1, 0.0), (0.9, 0.0), (0.4, 1.0)])],
        [(LINE, [(0.1, 0.05), (0.85, 0.0), (0.45, 1.0)]), (LINE, [(0.2, 0.5), (0.9, 0.48)])],
        [(CURVE, [(0.1, 0.12), (0.4, 0.05), (0.85, 0.05), (0.6, 0.5), (0.45, 1.0)]), (LINE, [(0.3, 0.5), (0.85, 0.5)])],
        [(CURVE, [(0.1, 0.15), (0.4, 0.02), (0.85, 0.05), (0.6, 0.5), (0.45, 1.0)])],
    ],
    8: [
        [
            (
                CURVE,
                [
                    (0.75, 0.12),
                    (0.45, 0.0),
                    (0.2, 0.2),
                    (0.5, 0.47),
                    (0.8, 0.75),
                    (0.5, 1.0),
                    (0.2, 0.75),
                    (0.5, 0.47),
                    (0.78, 0.22),
                    (0.6, 0.03),
                ],
            )
        ],
        [
            (CURVE, [(0.5, 0.0), (0.22, 0.22), (0.5, 0.46), (0.78, 0.22), (0.5, 0.0)]),
            (CURVE, [(0.5, 0.46), (0.15, 0.73), (0.5, 1.0), (0.85, 0.73), (0.5, 0.46)]),
        ],
    ],
    9: [
        [
            (CURVE, [(0.8, 0.22), (0.5, 0.0), (0.2, 0.25), (0.45, 0.5), (0.8, 0.22)]),
            (LINE, [(0.8, 0.2), (0.72, 1.0)]),
        ],
        [
            (
                CURVE,
                [(0.78, 0.2), (0.5, 0.0), (0.2, 0.25), (0.45, 0.5), (0.78, 0.25), (0.8, 0.6), (0.55, 1.0), (0.15, 0.9)],
            )
        ],
    ],
}


def draw_digit(digit: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one distorted digit.

    Returns uint8 [32, 32], 0 = background, 255 = ink. Raises KeyError for a digit outside 0–9.
    """
    ink = _font_glyph(digit, rng) if rng.random() < 0.35 else _stroke_glyph(digit, rng)
    ink = _elastic(_affine(ink, rng), rng)
    return _frame(ink, rng)


def draw_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` digits, classes in turn. Returns (uint8 [count, 32, 32], int64 labels [count])."""
    labels = np.arange(count) % 10
    images = [draw_digit(int(d), np.random.default_rng((seed, i))) for i, d in enumerate(labels)]
    return np.stack(images), labels.astype(np.int64)


@cache
def font_files() -> tuple[Path, ...]:
    """The text fonts matplotlib installs, the same on every machine."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(
        sorted(p for p in folder.glob("*.ttf") if p.name.startswith(FONT_PREFIXES) and "Display" not in p.name)
    )


@cache
def _font(index: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_files()[index]), 64)


def _font_glyph(digit: int, rng: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    font = _font(int(rng.integers(len(font_files()))))
    draw.text((CANVAS / 2, CANVAS / 2), str(digit), 255, font=font, anchor="mm")
    ink = np.asarray(canvas, np.float32) / 255
    size = int(rng.integers(0, 4)) * 2 + 1
    return ndimage.grey_dilation(ink, size=(size, size)) if size > 1 else ink


def _stroke_glyph(digit: int, rng: np.random.Generator) -> np.ndarray:
    variants = SKELETONS[digit]
    strokes = variants[int(rng.integers(len(variants)))]
    jitter = rng.uniform(0.01, 0.05)
    width = float(rng.uniform(6, 16))
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    for kind, points in strokes:
        path = np.asarray(points) + rng.normal(0, jitter, (len(points), 2))
        _draw_path(draw, _smooth(path) if kind == CURVE else path, width)
    return np.asarray(canvas, np.float32) / 255


def _smooth(path: np.ndarray) -> np.ndarray:
    spline, _ = splprep(path.T, s=0.002, k=min(3, len(path) - 1))
    return np.stack(splev(np.linspace(0, 1, 40), spline), axis=1)


def _draw_path(draw: ImageDraw.ImageDraw, path: np.ndarray, width: float) -> None:
    points = [(24 + 48 * float(x), 16 + 64 * float(y)) for x, y in path]
    draw.line(points, 255, round(width), joint="curve")
    for x, y in points:  # round pen: caps and joints
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)


def _affine(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = np.deg2rad(rng.normal(0, 8))
    shear = rng.normal(0, 0.18)
    scale = np.exp(rng.normal(0, 0.12, 2))
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotate @ np.array([[1, 0], [shear, 1]]) @ np.diag(scale)
    centre = np.array([CANVAS / 2, CANVAS / 2])
    offset: Any = centre - matrix @ centre  # one per axis; scipy annotates a scalar only
    return ndimage.affine_transform(ink, matrix, offset, order=1)


def _elastic(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    strength = rng.uniform(0, 5)
    coarse = rng.normal(0, strength, (2, 6, 6))
    shift = np.stack([np.asarray(ndimage.zoom(c, CANVAS / 6, order=3))[:CANVAS, :CANVAS] for c in coarse])
    grid = np.indices((CANVAS, CANVAS)) + shift
    return ndimage.map_coordinates(ink, grid, order=1)


def _frame(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crops to the ink, fits it to the frame's height, and renders it at a random sharpness."""
    rows, cols = np.where(ink > 0.3)
    if len(rows) == 0:
        return np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    crop = ink[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    height = int(rng.integers(27, 33))
    width = int(np.clip(crop.shape[1] * height / crop.shape[0] * rng.uniform(0.85, 1.15), 4, 30))
    glyph = Image.fromarray((crop * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
    frame = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    shift = int(np.clip(round(rng.normal(0, 1.2)), -2, 2))
    frame.paste(glyph, ((IMAGE_SIZE - width) // 2 + shift, (IMAGE_SIZE - height) // 2))
    small = (8, 8, 8, 12, 16, 32)[int(rng.integers(6))]
    frame = frame.resize((small, small), Image.Resampling.BOX)
    return np.asarray(frame.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
