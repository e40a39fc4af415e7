from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest
from PIL import Image

from dcdm_cli.errors import NotFoundError
from dcdm_cli.reports.html import ReportFigure, write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=y>[/x]\x1b[31m\u202e\udcff{{ 7*7 }}\" '"


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    return page


@pytest.fixture
def figure(tmp_path):
    path = tmp_path / "f.png"
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_one_file_with_everything_inside(metrics, figure, tmp_path):
    page = read(
        write_report(tmp_path / "report.html", metrics, [ReportFigure("Fig", figure, "look")], {"base": "tiny"})
    )
    [image] = page.all("img")
    assert base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) == figure.read_bytes()
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert len(page.all("table")) == 8
    for words in ("dcdm vs real: +0.9 points", "better", "96.50 %", "12 min 34 s", "look", "tiny"):
        assert words in page.text


def test_hostile_text_is_inert(metrics, figure, tmp_path):
    metrics["seconds"][HOSTILE] = 1.0
    for arm in metrics["downstream"]["arms"]:
        arm["name"] = HOSTILE
    figures = [ReportFigure(HOSTILE, figure, HOSTILE)]
    path = write_report(tmp_path / "report.html", metrics, figures, {HOSTILE: HOSTILE}, title=HOSTILE)
    page = read(path)
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    raw = path.read_text("utf-8")
    assert not set("\x1b\u202e\udcff") & set(raw)
    assert "\\x1b[31m\\u202e\\udcff{{ 7*7 }}" in page.text


def test_a_page_without_numbers_still_reads(tmp_path):
    page = read(write_report(tmp_path / "report.html", {"schema": 1}))
    assert not page.all("table")
    assert "None" not in page.text


def test_a_missing_figure_is_named(metrics, tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.png"):
        write_report(tmp_path / "report.html", metrics, [ReportFigure("Fig", tmp_path / "gone.png")])
    assert not (tmp_path / "report.html").exists()
