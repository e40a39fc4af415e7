"""Images to look at, as a CSV that comes back corrected and as one page with thumbnails."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcdm_cli.data.cells import guarded
from dcdm_cli.data.corrections import DROP, RELABEL
from dcdm_cli.data.images import RejectedImage, decode_image
from dcdm_cli.evaluation.review import GROUPS, Item
from dcdm_cli.files import write_text
from dcdm_cli.reports.atlas import Tile
from dcdm_cli.reports.table import ResultTable
from dcdm_cli.reports.templates import template

COLUMNS = (
    DROP,
    RELABEL,
    "group",
    "class_name",
    "predicted",
    "difficulty",
    "target",
    "source",
    "reason",
    "sample_id",
    "path",
)


@dataclass(frozen=True)
class Card:
    """One image of the page."""

    tile: Tile
    item: Item

    @property
    def numbers(self) -> str:
        wanted = "" if math.isnan(self.item.target) else f" (asked for {self.item.target:.2f})"
        return "" if math.isnan(self.item.difficulty) else f"difficulty {self.item.difficulty:.2f}{wanted}"


def write_review_table(path: Path, items: Sequence[Item]) -> None:
    """A row per image; `drop` and `new_label` are empty, for the person to fill in."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")  # csv's own is that of Windows
    writer.writerow(COLUMNS)
    for item in items:
        numbers = ["" if math.isnan(value) else f"{value:.4f}" for value in (item.difficulty, item.target)]
        named = [item.source, item.reason, item.sample_id, str(item.path)]
        row = ["", "", item.group, item.class_name, item.predicted, *numbers, *named]
        writer.writerow(map(guarded, row))
    write_text(path, stream.getvalue())


def write_gallery(path: Path, items: Sequence[Item], about: Sequence[str]) -> None:
    """One self-contained page: a thumbnail, the reason and the path of every image, group by group."""
    groups = [(name, text, [_card(i) for i in items if i.group == name]) for name, text in GROUPS.items()]
    page = template("review.html.j2").render(title="Images to look at", about=about, groups=groups)
    write_text(path, page + "\n")


def review_table(counts: dict[str, int]) -> ResultTable:
    rows = tuple((f"{name}: {text}", str(counts[name])) for name, text in GROUPS.items())
    doubtful = f"{counts['suspects']} labels are in doubt" if counts["suspects"] else "No label is in doubt"
    repeated = f", {counts['copies']} pictures repeat another" if counts["copies"] else ""
    sentence = f"{doubtful}{repeated}; mark what is to change in review.csv and give it back:"
    return ResultTable("Images to look at", ("group", "images"), rows, sentence)


def _card(item: Item) -> Card:
    from PIL import Image

    try:
        picture = decode_image(item.path)
    except RejectedImage:
        picture = Image.new("RGB", (8, 8), "grey")  # it went away since; the row still says what it was
    return Card(Tile.of(picture, f"{item.class_name}: {item.reason}"), item)
