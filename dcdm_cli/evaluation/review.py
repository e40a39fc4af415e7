"""Which images a person should look at, and why: suspects, hardest, easiest, copies, misses. Not from the paper.

From the columns of manifests alone; what is there twice but not to the pixel, and copies of training images among
generated ones, are found by thumbnails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dcdm_cli.data.manifest import Manifest

SUSPECT, HARDEST, EASIEST, COPY, MISS = "suspects", "hardest", "easiest", "copies", "misses"
GROUPS = {
    SUSPECT: "Labels that are likely wrong: another class is predicted with confidence",
    HARDEST: "The hardest real images whose label is not in doubt",
    EASIEST: "The easiest real images",
    COPY: "Pictures that are there twice, and generated ones that repeat a training image",
    MISS: "Generated images that do not show their label, or are far from the difficulty asked for",
}


@dataclass(frozen=True)
class Item:
    """One image to look at. source: "real", "generated" or the name of a generated set. difficulty NaN = not known."""

    group: str
    reason: str
    source: str
    sample_id: str
    path: Path
    class_name: str
    predicted: str
    difficulty: float
    target: float = float("nan")


def real_items(train: Manifest, most: int) -> list[Item]:
    """Suspects, hardest, easiest and copies, at most `most` of each, the clearest first. Of few images the harder half
    is at most what is hardest, and none of it easiest."""
    s, suspect = train.column("difficulty"), train.column("suspect_label").astype(bool)
    known = np.flatnonzero(np.isfinite(s))
    order = known[np.argsort(s[known], kind="stable")]
    doubtful = order[suspect[order]][::-1]
    sure = order[~suspect[order]]
    easy = len(sure) // 2
    chosen = {SUSPECT: doubtful[:most], HARDEST: sure[easy:][::-1][:most], EASIEST: sure[:easy][:most]}
    found = [_real(train, row, group) for group, rows in chosen.items() for row in rows.tolist()]
    return found + list(_twins(train))[:most]


def near_twins(train: Manifest, other: np.ndarray, same: np.ndarray, most: int) -> list[Item]:
    """Training images that show the picture of an earlier one otherwise encoded, resized or mirrored; those under two
    labels first. other: int64 [N], the nearest other row; same: bool [N], whether it shows the same picture. Those that
    are equal to the pixel are among `real_items`."""
    names, paths = train.column("class_name").tolist(), train.paths()
    picture = [sample.split("-")[0] for sample in train.column("sample_id").tolist()]
    pairs = {tuple(sorted((row, int(other[row])))) for row in np.flatnonzero(same).tolist()}
    found = sorted((names[a] == names[b], b, a) for a, b in pairs if picture[a] != picture[b])
    twins = ((_real(train, row, COPY), paths[first].name, alike, names[first]) for alike, row, first in found[:most])
    return [replace(item, reason=_repeats("nearly", name, alike, label)) for item, name, alike, label in twins]


def missed(images: Manifest, source: str, tolerance: float, most: int) -> list[Item]:
    """Generated images whose label the scorer does not see, then those further than `tolerance` from their target."""
    target, measured = images.column("target_difficulty"), images.column("measured_difficulty")
    predicted, label = images.column("predicted"), images.column("label")
    lost = (predicted >= 0) & (predicted != label)
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(np.abs(measured - target), nan=0.0)  # not measured is not missed
    # lexsort goes by its last key first: lost labels, then distance
    order = np.lexsort((-distance, ~lost))
    rows = [row for row in order.tolist() if lost[row] or distance[row] > tolerance][:most]
    return [_generated(images, row, MISS, _miss(images, row, bool(lost[row])), source) for row in rows]


def copied(images: Manifest, source: str, same: np.ndarray, nearest: Sequence[Path], most: int) -> list[Item]:
    """Generated images that repeat a training image. same: bool [N]; nearest: the training image of each."""
    rows = np.flatnonzero(same).tolist()[:most]
    return [_generated(images, row, COPY, f"repeats the training image {nearest[row].name}", source) for row in rows]


def counted(items: Sequence[Item]) -> dict[str, int]:
    return {group: sum(item.group == group for item in items) for group in GROUPS}


def _real(train: Manifest, row: int, group: str) -> Item:
    row_of = train.table.slice(row, 1).to_pylist()[0]
    path = (train.root or Path()) / row_of["path"]
    predicted, names = row_of["predicted"], train.class_names
    seen = names[predicted] if predicted is not None and 0 <= predicted < len(names) else ""
    reason = f"difficulty {row_of['difficulty']:.2f}"
    if seen and seen != row_of["class_name"]:
        reason = f"labelled {row_of['class_name']}, the scorer sees {seen} (p {_p(row_of['p_true'])} for the label)"
    return Item(
        group, reason, "real", row_of["sample_id"], path,
        row_of["class_name"], seen, _number(row_of["difficulty"]),
    )  # fmt: skip


def _twins(train: Manifest) -> Iterator[Item]:
    """Every further copy of a picture; those under two labels first. The id starts with the picture's hash."""
    first: dict[str, int] = {}
    ids, names = train.column("sample_id").tolist(), train.column("class_name").tolist()
    twins = []
    for row, sample in enumerate(ids):
        picture = sample.split("-")[0]
        if picture in first:
            twins.append((names[row] == names[first[picture]], row, first[picture]))
        first.setdefault(picture, row)
    # False comes before True: two labels first
    for alike, row, other in sorted(twins):
        reason = _repeats("", train.paths()[other].name, alike, names[other])
        yield replace(_real(train, row, COPY), reason=reason)


def _repeats(how: str, name: str, alike: bool, label: str) -> str:
    return " ".join(filter(None, (how, f"the same picture as {name}"))) + (
        "" if alike else f", which is labelled {label}"
    )


def _generated(images: Manifest, row: int, group: str, reason: str, source: str) -> Item:
    found = images.table.slice(row, 1).to_pylist()[0]
    predicted, names = found["predicted"], images.class_names
    seen = names[predicted] if predicted is not None and 0 <= predicted < len(names) else ""
    path = (images.root or Path()) / found["path"]
    measured, target = _number(found["measured_difficulty"]), _number(found["target_difficulty"])
    return Item(group, reason, source, found["sample_id"], path, found["class_name"], seen, measured, target)


def _miss(images: Manifest, row: int, lost: bool) -> str:
    found = images.table.slice(row, 1).to_pylist()[0]
    wanted = f"{_number(found['measured_difficulty']):.2f} instead of {_number(found['target_difficulty']):.2f}"
    if lost:
        return f"made as {found['class_name']}, the scorer sees {images.class_names[found['predicted']]}; {wanted}"
    return f"difficulty {wanted}"


def _p(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
