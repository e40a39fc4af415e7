"""What the packaged features are worth as a scorer: CIFAR-10 at 1,000 images by pixels, digits at 50 and 200.

    python benchmarks/bench_features.py --data FOLDER   # CIFAR-10 as Parquet: train*.parquet

One thread. Out-of-fold accuracy, mean difficulty, expected calibration error and CPU seconds, nothing cached; for
digits beside the preset's trained classifiers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_data import assign, read_images
from common import RESULTS, write_result

from dcdm_cli.data.digits import digit_images, split_rows
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.scores import calibration_error
from dcdm_cli.difficulty.scoring import Scoring, score_images
from dcdm_cli.files import hash_bytes
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import ScoreConfig

PIXELS = (96, 128, 160)
DIGITS = (50, 200)


def cifar10(data: Path, folder: Path) -> Manifest:
    """The 1,000 images of the small target."""
    images = read_images(data, "train")
    rows = []
    for row in assign(images.labels)["small"]:
        (folder / f"{row}.jpg").write_bytes(images.content[row])
        rows.append({**identity(images.content[row]), "path": f"{row}.jpg", "label": int(images.labels[row])})
    return Manifest.from_rows(rows, images.names, folder)


def digits(count: int, folder: Path) -> Manifest:
    """The first of the embedded training images, as many of each class."""
    from PIL import Image

    images, labels = digit_images()
    rows, train = [], split_rows(labels)["train"]
    for label in range(10):
        for row in train[labels[train] == label][: count // 10]:
            Image.fromarray(images[row]).convert("RGB").save(folder / f"digit-{row}.png")
            rows.append({**identity(images[row].tobytes()), "path": f"digit-{row}.png", "label": label})
    return Manifest.from_rows(rows, [str(label) for label in range(10)], folder)


def identity(content: bytes) -> dict[str, Any]:
    return {"sample_id": hash_bytes(content), "width": 32, "height": 32}


def measured(name: str, manifest: Manifest, config: ScoreConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as spool:
        started = time.process_time()
        scored = score_images(manifest, config, Scoring(Path(spool)), Job())
        seconds = time.process_time() - started
    labels = manifest.column("label").astype(np.int64)
    found = {
        "data": name,
        "images": len(manifest),
        "method": scored.results["method"],
        "pixels": config.feature_size if config.method == "features" else config.image_size,
        "accuracy": round(scored.results["accuracy"], 4),
        "mean_difficulty": round(float(np.nanmean(scored.columns["difficulty"])), 4),
        "calibration_error": round(calibration_error(scored.columns, labels), 4),
        "cpu_seconds": round(seconds, 1),
    }
    print(found, flush=True)
    return found


def cases() -> dict[str, tuple[str, int, int | None]]:
    """By name: data, images, pixels (None = the preset's trained classifiers)."""
    found = {f"cifar10-{pixels}": ("CIFAR-10", 1000, pixels) for pixels in PIXELS}
    for count in DIGITS:
        found |= {f"digits-{count}-{pixels or 'trained'}": ("digits", count, pixels) for pixels in (*PIXELS, None)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", choices=cases(), nargs="*", help="measure these only; the others' figures stay")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "bench_features.json"
    rows = json.loads(file.read_text("utf-8"))["rows"] if given.case and file.is_file() else {}
    for name in given.case or cases():
        data, count, pixels = cases()[name]
        config = ScoreConfig(method="features", feature_size=pixels)
        if pixels is None:
            config = resolve(flags={"preset": "digits"}).config.score
        with tempfile.TemporaryDirectory() as place:
            images = cifar10(given.data, Path(place)) if data == "CIFAR-10" else digits(count, Path(place))
            rows[name] = measured(data, images, config)
    rows = {name: rows[name] for name in cases() if name in rows}
    write_result("bench_features", {"threads": 1, "rows": rows}, {"measured": given.case or list(rows)})


if __name__ == "__main__":
    main()
