"""CIFAR-10 from Parquet, and who may see which image.

45,000 training images for the base model (class captions only), 5,000 others as the target set, of which 1,000 are the
small target. The judge learns from 20,000 of the base's images. The small target's settings are chosen on the other
4,000 of the target set. The test file is only ever tested on.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

POOL, SMALL, JUDGE = 500, 100, 2000  # images per class
SIDE = 32
EPOCH = 1_600_000_000  # of the lists, so that a copied folder is not taken for a new one


@dataclass(frozen=True)
class Images:
    """content: encoded images; labels: int64 [N]; names: classes in label order."""

    content: Sequence[bytes]
    labels: np.ndarray
    names: tuple[str, ...]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [rows, 3, 32, 32]"""
        pictures = [Image.open(io.BytesIO(self.content[row])).convert("RGB").resize((SIDE, SIDE)) for row in rows]
        return np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)


def read_images(folder: Path, split: str) -> Images:
    """split: train or test; every `<split>*.parquet` of the folder, in the order of their names."""
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise SystemExit(f"no {split}*.parquet in {folder}")
    table = pa.concat_tables([pq.read_table(file, columns=["image", "label"]) for file in files])
    meta = json.loads((pq.read_schema(files[0]).metadata or {})[b"huggingface"])
    names = tuple(meta["info"]["features"]["label"]["names"])
    content = [row["bytes"] for row in table["image"].to_pylist()]
    return Images(content, np.asarray(table["label"], np.int64), names)


def assign(labels: np.ndarray, per_class: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Row numbers of the training file by purpose, stratified, the same every time: base, target (of which `small` and
    `rest` are parts), and judge, which is a part of base."""
    counts = {"pool": POOL, "small": SMALL, "judge": JUDGE, **(per_class or {})}
    rng = np.random.default_rng(0)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("base", "target", "small", "rest", "judge")}
    for label in np.unique(labels):
        mine = rng.permutation(np.flatnonzero(labels == label))
        pool, base = np.split(mine, [counts["pool"]])
        small, rest = np.split(pool, [counts["small"]])
        for name, part in (("base", base), ("target", pool), ("small", small), ("rest", rest)):
            rows[name].append(part)
        rows["judge"].append(base[: counts["judge"]])
    return {name: np.sort(np.concatenate(parts)) for name, parts in rows.items()}


def write_target(state: Path, name: str, parts: Mapping[str, tuple[Images, np.ndarray, str]]) -> Path:
    """Image files below state/images, and `<name>.csv` with path, label and split.

    parts: split of the run -> (images, rows, source name), the last for the file names.
    """
    lines = []
    for split, (images, rows, source) in parts.items():
        folder = state / "images" / source
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows.tolist():
            file = folder / f"{row:05d}.jpg"
            if not file.is_file():
                file.write_bytes(images.content[row])
            lines.append((file.relative_to(state).as_posix(), images.names[images.labels[row]], split))
    target = state / f"{name}.csv"
    with target.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *lines])
    os.utime(target, (EPOCH, EPOCH))
    return target
