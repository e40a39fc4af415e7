"""The pictures of a report: generated and real images as cards that sort, filter and open to their full row."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from dcdm_cli.arrays import evenly
from dcdm_cli.data.images import RejectedImage, decode_image
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.reports.atlas import Tile
from dcdm_cli.reports.formatting import number

GENERATED, REAL = "generated", "real"
YES, NO, UNKNOWN = "yes", "no", "not known"
SEEN = {YES: "label seen by the scorer", NO: "label not seen by the scorer", UNKNOWN: "label not checked"}


@dataclass(frozen=True)
class Picture:
    """difficulty: NaN where it is not known. agreement: yes, no or not known: the scorer gives the image its label.
    row: what its table says of it, for who opens the card."""

    tile: Tile
    class_name: str
    difficulty: float
    agreement: str
    source: str
    row: Mapping[str, str]

    @property
    def shown(self) -> str:
        """The difficulty as text; as a sort key it must be a number."""
        return "difficulty not known" if math.isnan(self.difficulty) else f"difficulty {number(self.difficulty)}"

    @property
    def key(self) -> str:
        return "-1" if math.isnan(self.difficulty) else f"{self.difficulty:.4f}"

    @property
    def alt(self) -> str:
        return f"{self.source} image of class {self.class_name}, {self.shown}, {SEEN[self.agreement]}"


@dataclass(frozen=True)
class PictureGallery:
    """pictures, and the words that the page's filters offer."""

    pictures: Sequence[Picture]

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(picture.class_name for picture in self.pictures))

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(picture.source for picture in self.pictures))


def pictures(manifest: Manifest, most: int) -> list[Picture]:
    """At most `most` images, as many of each class as goes, over all its difficulties; unreadable ones are left out."""
    kind = GENERATED if manifest.table["synthetic"].to_pylist()[:1] == [True] else REAL  # a table holds one kind
    measured = manifest.column("measured_difficulty" if kind == GENERATED else "difficulty")
    chosen = spread_over(manifest.column("label"), measured, most)
    some = manifest.select(chosen)
    found = []
    for row, path, value in zip(some.rows(), some.paths(), measured[chosen].tolist(), strict=True):
        try:
            picture = decode_image(path)
        except RejectedImage:
            continue
        source = f"{kind}, {row['prompt_source']}" if row["prompt_source"] else kind
        row["path"] = str(path)  # whole, as other programs open it
        found.append(_picture(Tile.of(picture, row["class_name"]), row, value, source))
    return found


def spread_over(labels: np.ndarray, difficulty: np.ndarray, most: int) -> np.ndarray:
    """Positions int64 of at most `most` images: classes in turn, each from its easiest to its hardest in even steps."""
    classes = np.unique(labels[labels >= 0])
    each = max(1, most // max(1, len(classes)))
    picked = []
    for label in classes[:most]:
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(difficulty[mine], kind="stable")]  # those that are not known, NaN, come last
        picked.append(mine[evenly(len(mine), each)])
    return np.concatenate(picked) if picked else np.zeros(0, np.int64)


def _picture(tile: Tile, row: Mapping[str, Any], difficulty: float, source: str) -> Picture:
    agreement = UNKNOWN if row["predicted"] is None else YES if row["predicted"] == row["label"] else NO
    said = {name: _cell(value) for name, value in row.items() if value is not None}
    return Picture(tile, row["class_name"], difficulty, agreement, source, said)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def script() -> str:
    """The page's own script, which sorts and filters; without it all cards are shown."""
    return files("dcdm_cli.reports").joinpath("gallery.js").read_text("utf-8").strip()


def script_hash() -> str:
    """By which the page's policy lets this script run, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()}"
