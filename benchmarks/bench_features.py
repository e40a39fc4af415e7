"""What the packaged features are worth as a scorer: CIFAR-10 at 1,000 images by pixels, digits at 50 and 200.

    python benchmarks/bench_features.py --data FOLDER   # CIFAR-10 as Parquet: train*.parquet

One thread. Out-of-fold accuracy, mean difficulty, expected calibration error and CPU seconds, nothing cached; for
digits beside the preset's trained classifiers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_data import assign, read_images
from common import TRAINING, versions, write_result

from dcdm_cli.config import ScoreConfig, resolve
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.demo.digits import digit_images, split_rows
from dcdm_cli.difficulty.classifier import logits_of
from dcdm_cli.difficulty.features import open_extractor
from dcdm_cli.difficulty.scores import calibration_error
from dcdm_cli.difficulty.scoring import Scoring, score_images
from dcdm_cli.files import hash_bytes
from dcdm_cli.job import Job

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


def rate(manifest: Manifest, pixels: int) -> float:
    """Images per CPU second of looking alone, one thread."""
    extractor, files = open_extractor("packaged", pixels), manifest.paths()[:128]
    logits_of([extractor.network], files[:32], extractor.preprocessing, "cpu", 32)
    started = time.process_time()
    logits_of([extractor.network], files, extractor.preprocessing, "cpu", 64)
    return round(len(files) / (time.process_time() - started), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    preset = resolve(flags={"preset": "digits"}).config.score
    rows = []
    with tempfile.TemporaryDirectory() as place:
        small = cifar10(given.data, Path(place))
        for pixels in PIXELS:
            config = ScoreConfig(method="features", feature_size=pixels)
            rows.append({**measured("CIFAR-10", small, config), "images_per_cpu_second": rate(small, pixels)})
        for count in DIGITS:
            manifest = digits(count, Path(place))
            for pixels in PIXELS:
                rows.append(measured("digits", manifest, ScoreConfig(method="features", feature_size=pixels)))
            rows.append(measured("digits", manifest, preset))
    best = max((row for row in rows if row["data"] == "CIFAR-10"), key=lambda row: row["accuracy"])
    found = versions()
    about = {"threads": 1, "packages": {name: found[name] for name in TRAINING if name in found}}
    write_result("bench_features", {**about, "rows": rows}, {"best on CIFAR-10": best})


if __name__ == "__main__":
    main()
