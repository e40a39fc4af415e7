"""Builders shared by the tests of the data room."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.data.sources import Scan, ScanOptions, scan


def picture(seed: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    """Random RGB pixels; equal seeds give equal pictures."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small picture at a path below the `images` folder."""

    def write(name: str, seed: int = 0) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(seed)))
        return path

    return write


@pytest.fixture
def scanned(tmp_path: Path) -> Callable[..., Scan]:
    """Scans a source, by default the `images` folder, without carving splits."""

    def run(source: str | Path | None = None, **options: object) -> Scan:
        chosen = {"judge_fraction": 0.0, "test_fraction": 0.0} | options
        return scan(str(source or tmp_path / "images"), ScanOptions(**chosen), tmp_path / "kept")  # type: ignore[arg-type]

    return run
