"""The report in a real browser: it sorts, filters and opens, in light and dark and on a phone, and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from screens import BROWSER, FLAGS

from .test_gallery import write

WIDTHS = {"phone": 360, "desk": 1280}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here (pip install playwright)")
    with playwright.sync_playwright() as player:
        opened = player.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, metrics: dict, tmp_path: Path) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": WIDTHS["desk"], "height": 900})
    opened.faults = []
    opened.on("console", lambda message: opened.faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("request", lambda request: opened.faults.append(request.url) if "file:" not in request.url[:5]
              and not request.url.startswith("data:") else None)  # fmt: skip
    opened.goto(write(tmp_path, metrics).as_uri())
    yield opened
    assert opened.faults == []
    opened.close()


def visible(page: Any) -> list[tuple[str, float, str, str]]:
    cards = page.locator(".card:visible")
    read = "(cards) => cards.map((c) => [c.dataset.class, Number(c.dataset.difficulty), c.dataset.agreement, "
    read += "c.dataset.source])"
    return [tuple(row) for row in cards.evaluate_all(read)]


def test_cards_sort_filter_and_open(page: Any) -> None:
    assert len(visible(page)) == 12 and page.locator("#count").inner_text() == "12 of 12 images"
    page.select_option("select[name=order]", "hardest first")
    difficulties = [row[1] for row in visible(page)]
    assert difficulties == sorted(difficulties, reverse=True)
    page.select_option("select[name=order]", "label not seen first")
    agreements = [row[2] for row in visible(page)]
    assert agreements == sorted(agreements, key=["no", "not known", "yes"].index) and len({*agreements}) > 1
    page.select_option("select[name=order]", "by source")
    sources = [one for one, _ in groupby(row[3] for row in visible(page))]
    assert sources == [*dict.fromkeys(sources)] and len(sources) > 1, "each source in one piece"
    page.select_option("select[name=class]", "cat")
    page.select_option("select[name=agreement]", "no")
    assert visible(page) and all(row[0] == "cat" and row[2] == "no" for row in visible(page))
    page.select_option("select[name=class]", "")
    page.select_option("select[name=agreement]", "")
    page.select_option("select[name=source]", "generated, llm")
    assert page.locator("#count").inner_text() == "3 of 12 images"
    page.select_option("select[name=source]", "")
    page.select_option("select[name=range]", "0.2-0.4")
    assert all(0.2 <= row[1] < 0.4 for row in visible(page)) and visible(page)
    card = page.locator(".card:visible").first
    assert not card.locator("dl").is_visible()
    card.locator("summary").click()
    assert card.locator("dl").is_visible() and "sample_id" in card.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", list(WIDTHS))
def test_nothing_is_wider_than_the_screen_and_text_is_readable(page: Any, scheme: str, place: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": WIDTHS[place], "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[place]
    for what in ("body", ".terms", ".now p", "select", "td"):
        assert contrast(page, what) >= 4.5, f"{what} in {scheme}"


def contrast(page: Any, what: str) -> float:
    """WCAG's ratio of the first such element's ink and the nearest ground below it."""
    ink, ground = page.locator(what).first.evaluate(
        """(node) => { const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        const clear = (one) => (rgb(getComputedStyle(one).backgroundColor)[3] ?? 1) === 0;
        let below = node;
        while (below && clear(below)) below = below.parentElement;
        return [rgb(getComputedStyle(node).color), rgb(getComputedStyle(below ?? document.body).backgroundColor)]; }"""
    )
    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
