"""The atlas page: safe, self-contained, and still a page with a thousand classes."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.reports.atlas import SIDE, ClassEntry, Strip, Tile, factor_chart, write_atlas, write_grids

from .conftest import HOSTILE

FACTORS = {"brightness": 0.81, "contrast": -0.4, "colour": None}


def picture(seed: int, side: int = 32) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def entry(name: str, tile: Tile, count: int = 5) -> ClassEntry:
    strips = [Strip(title, [tile] * count) for title in ("real, easiest", "generated", "difficulty alone", "hardest")]
    return ClassEntry(name, 0.31, strips, ["Real images, as they get harder: darker."], FACTORS)


def test_tiny_pictures_keep_every_pixel_and_large_ones_are_reduced() -> None:
    small = picture(0)
    assert np.array_equal(np.asarray(Tile.of(small, "").image()), np.asarray(small))
    large = Tile.of(picture(1, 512), "").image()
    assert max(large.size) == SIDE


def test_the_page_is_self_contained_and_safe(tmp_path: Path) -> None:
    tile = Tile.of(picture(0), "0.30 → 0.28", HOSTILE)
    page = write_atlas(tmp_path / "atlas.html", HOSTILE, [entry(HOSTILE, tile)], [HOSTILE], [HOSTILE])
    text, tags = page.read_text("utf-8"), []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            tags.append((tag, dict(attrs)))

    Page().feed(text)
    assert "script" not in {tag for tag, _ in tags} and not set("\x1b\u202e") & set(text)
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) == 20 and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "0.30 → 0.28" in text and "mean difficulty 0.31" in text and "not known" in text


def test_a_thousand_classes_are_small_and_quick(tmp_path: Path) -> None:
    tiles = [Tile.of(picture(i, 224), "0.30 → 0.28") for i in range(20)]
    names = [f"class {i}" for i in range(1000)]
    clock = time.process_time()
    entries = (entry(name, tiles[i % 20], 6) for i, name in enumerate(names))
    page = write_atlas(tmp_path / "atlas.html", "Atlas", entries, [], names)
    assert time.process_time() - clock < 10
    assert page.stat().st_size < 60e6  # 24,000 pictures of 96 pixels
    text = page.read_text("utf-8")
    assert text.count("<section") == 1000 and "content-visibility: auto" in text


def test_the_same_pictures_as_png_files(tmp_path: Path) -> None:
    entries = [entry(f"c{i}", Tile.of(picture(i), "real 0.10")) for i in range(8)]
    made = write_grids(tmp_path, entries)
    assert [path.name for path in made] == ["atlas-000.png", "atlas-001.png"]
    with Image.open(made[0]) as image:
        assert image.height < 2500 and np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize("count", [0, 3])
def test_the_factor_chart_has_a_row_per_class(tmp_path: Path, count: int) -> None:
    entries = [entry(f"c{i}", Tile.of(picture(i), "")) for i in range(count)]
    with Image.open(factor_chart(tmp_path / "factors.png", entries)) as image:
        assert image.width > 300
