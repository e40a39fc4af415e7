"""The pictures of a report: which are taken, what is said of them, and the page in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.reports.advice import Advice
from dcdm_cli.reports.gallery import PictureGallery, pictures, script, script_hash, spread_over
from dcdm_cli.reports.html import Extras, ReportFigure, write_report
from dcdm_cli.reports.terms import TERMS, Explained

from .conftest import HOSTILE
from .test_report_html import read

NAMES = ("cat", HOSTILE)


def manifest(folder: Path, count: int = 12) -> Manifest:
    rows = []
    for i in range(count):
        Image.new("RGB", (16, 16), (20 * i, 90, 160)).save(folder / f"{i}.png")
        label = i % 2
        rows.append(
            {"sample_id": f"{i:016x}", "path": f"{i}.png", "label": label, "class_name": NAMES[label], "split": "train",
             "synthetic": True, "measured_difficulty": (i + 0.5) / count, "difficulty": (i + 0.5) / count,
             "predicted": label if i % 3 else 1 - label, "prompt": f"a {NAMES[label]}", "seed": i,
             "prompt_source": "llm" if i % 4 == 0 else None, "target_difficulty": 0.5}
        )  # fmt: skip
    return Manifest.from_rows(rows, NAMES, folder)


def write(folder: Path, metrics: dict) -> Path:
    figure = folder / "f.png"
    Image.new("RGB", (300, 200), "white").save(figure)
    box = [Advice("Go on or stop?", "Go on: the images help", "+0.9 points of accuracy", "dcdm evaluate --seeds 8")]
    made = {"made on": "2026-11-29 12:00 UTC", "with": "dcdm 0.1.0", "command": "dcdm evaluate --run birds"}
    extras = Extras(made, box, PictureGallery(pictures(manifest(folder), 100)))
    figures = [ReportFigure("Label frontier", figure, "Where labels break.")]
    return write_report(folder / "report.html", metrics, figures, {"base": "tiny"}, extras=extras)


def test_images_are_spread_over_classes_and_difficulties() -> None:
    labels, difficulty = np.repeat([0, 1, 2], 50), np.tile(np.linspace(0, 1, 50), 3)
    difficulty[:5] = np.nan
    chosen = spread_over(labels, difficulty, 15)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 5]
    of_one = difficulty[chosen[labels[chosen] == 1]]
    assert of_one[0] == 0 and of_one[-1] == 1 and (np.diff(of_one) > 0).all()
    assert len(spread_over(np.arange(100), np.zeros(100), 7)) == 7
    assert len(spread_over(labels[:0], difficulty[:0], 7)) == 0


def test_a_card_says_what_is_known(tmp_path: Path) -> None:
    found = pictures(manifest(tmp_path), 100)
    first = next(picture for picture in found if picture.row["seed"] == "0")
    assert (first.agreement, first.source, first.shown) == ("no", "generated, llm", "difficulty 0.04")
    assert first.alt == "generated, llm image of class cat, difficulty 0.04, label not seen by the scorer"
    assert first.row["prompt"] == "a cat" and first.row["path"] == str(tmp_path / "0.png")
    made = [{**row, "width": 16, "height": 16} for row in manifest(tmp_path).rows()]
    [sized, *_] = pictures(Manifest.from_rows(made, NAMES, tmp_path), 100)
    assert (sized.row["width"], sized.row["height"]) == ("16", "16")
    (tmp_path / "3.png").unlink()
    assert len(pictures(manifest(tmp_path), 100)) == 12


def test_the_page_is_one_file_whose_policy_knows_its_script(metrics: dict, tmp_path: Path) -> None:
    file = write(tmp_path, metrics)
    page, raw = read(file), file.read_text("utf-8")
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{script_hash()}'"
    assert len(page.all("script")) == 1 and script() in raw
    assert all(image["alt"] for image in page.all("img")) and len(page.all("img")) == 13
    assert all((image["src"] or "").startswith("data:") for image in page.all("img"))
    assert not re.search(r"(src|href)=\"(?!data:|#)", raw)
    for words in (
        "What should I do now?",
        "dcdm evaluate --seeds 8",
        "2026-11-29 12:00 UTC",
        "dcdm evaluate --run birds",
    ):
        assert words in page.text
    assert raw.count("<b>rank correlation</b>") == 1, "a term is explained once"
    assert raw.index("<b>label agreement</b>") < raw.rindex("label agreement")
    assert HOSTILE not in raw and "<script>alert" not in raw


def test_terms_are_explained_where_they_first_stand() -> None:
    explained = Explained()
    found = explained.first("The rank correlation of seeds")
    assert [term for term, _ in found] == ["rank correlation", "seed", "target", "difficulty", "scorer"]
    assert all(text == TERMS[term] for term, text in found)
    assert explained.first("rank correlation, Seeds") == [] and explained.first("proseeded") == []


def test_another_word_for_a_term_explains_it_once() -> None:
    explained = Explained()
    assert explained.first("covers") == [("covers", TERMS["coverage"])] and explained.first("coverage") == []
    assert explained.first("Means from 0.1 to 0.9 can be reached") == [("reached", TERMS["reach"])]
    assert Explained().first("a label, hard to cover") == [], "words that are terms only where they head a column"
    for word in ("log-loss", "harder half", "phi", "nats", "both by chance", "verdict", "near-duplicates", "thumbnails",
                 "packaged", "plain"):  # fmt: skip
        assert Explained().first(f"of {word} here"), word
