"""What the packaged features are worth as a scorer, beside trained classifiers: CIFAR-10 and digits, by images and
pixels.

    python benchmarks/bench_features.py --data FOLDER   # CIFAR-10 as Parquet: train*.parquet, test*.parquet

One thread. Of each way of scoring: out-of-fold accuracy, mean difficulty, expected calibration error; the rank
correlation of its difficulties with those of a much better informed classifier; how well its difficulty of unseen
images foretells which of them a small network, trained from scratch on the same images, gets wrong (area under the ROC
curve, 0.5 = not at all); and CPU seconds, nothing cached. The better informed classifier of CIFAR-10 is a head on
packaged features at 64 pixels, out of fold over `--reference` training images (a trained network of that many images
takes hours on one core, and would judge features less kindly); of digits the preset's networks on all 1,797.

`cifar10-first-...` are the first images of the file instead of the stratified selection that the others are parts of.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_data import Images, assign, read_images
from common import RESULTS, write_result
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dcdm_cli.data.digits import digit_images, split_rows
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import predict_logits, train_classifier
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.difficulty.scores import calibration_error
from dcdm_cli.difficulty.scoring import Scoring, score_images
from dcdm_cli.files import hash_bytes
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import ScoreConfig

PIXELS = (64, 128, 160)
CIFAR10, DIGITS = (500, 1000, 5000), (50, 200)
TRAINED = "trained"
UNSEEN = 500  # images that difficulty and the small network are asked about
SEEDS = 2  # of the small network
SMALL_NET = {
    "model": "resnet10t", "model_args": {"channels": [16, 24, 32, 64], "stem_width": 8}, "image_size": 32,
    "batch_size": 32, "steps": 400, "lr": 6e-3, "scale": [0.7, 1.0],
}  # fmt: skip
REFERENCE = {"features": "packaged", "feature_size": 64, "method": "features"}


@dataclass(frozen=True)
class Problem:
    """train: images with the sample ids by which `reference`, id -> difficulty, knows them; unseen: others."""

    name: str
    train: Manifest
    unseen: Manifest
    reference: Mapping[str, float]
    trained: ScoreConfig


def in_folder(images: Images, rows: np.ndarray, folder: Path, source: str) -> Manifest:
    """The encoded images as files, written once."""
    found = []
    for row in rows.tolist():
        file = folder / f"{source}-{row:05d}.jpg"
        if not file.is_file():
            file.write_bytes(images.content[row])
        found.append({**identity(images.content[row]), "path": file.name, "label": int(images.labels[row])})
    return Manifest.from_rows(found, images.names, folder)


def identity(content: bytes) -> dict[str, Any]:
    return {"sample_id": hash_bytes(content), "width": 32, "height": 32}


class Cifar10:
    """folder: for files; reference: how many training images the better informed classifier learns from."""

    def __init__(self, data: Path, folder: Path, reference: int) -> None:
        self.images, self.folder = read_images(data, "train"), folder
        self.parts = assign(self.images.labels)
        test = read_images(data, "test")
        self.unseen = in_folder(test, np.arange(UNSEEN), folder, "test")
        others = np.setdiff1d(np.arange(len(self.images.labels)), self.parts["target"])
        wanted = np.concatenate([self.parts["target"], np.arange(max(CIFAR10)), others])
        rows = np.sort(wanted[np.sort(np.unique(wanted, return_index=True)[1])][:reference])
        known = in_folder(self.images, rows, folder, "train")
        self.reference = difficulties(known, ScoreConfig.model_validate(REFERENCE))

    def problem(self, count: int, *, first: bool = False) -> Problem:
        small, target = self.parts["small"], self.parts["target"]
        rows = np.arange(count) if first else {500: small[::2], 1000: small, 5000: target}[count]
        train = in_folder(self.images, rows, self.folder, "train")
        trained = ScoreConfig.model_validate({**SMALL_NET, "method": "crossfit"})
        return Problem("CIFAR-10, first" if first else "CIFAR-10", train, self.unseen, self.reference, trained)


class HandwrittenDigits:
    def __init__(self, folder: Path) -> None:
        self.pixels, self.labels = digit_images()
        self.folder, self.rows = folder, split_rows(self.labels)
        self.trained = resolve(flags={"preset": "digits"}).config.score
        self.reference = difficulties(self.manifest(np.arange(len(self.labels))), self.trained)

    def manifest(self, rows: np.ndarray) -> Manifest:
        found = []
        for row in rows.tolist():
            file = self.folder / f"digit-{row}.png"
            Image.fromarray(self.pixels[row]).convert("RGB").save(file)
            about = identity(self.pixels[row].tobytes())
            found.append({**about, "path": file.name, "label": int(self.labels[row])})
        return Manifest.from_rows(found, [str(label) for label in range(10)], self.folder)

    def problem(self, count: int) -> Problem:
        """The first of the embedded training images, as many of each class."""
        train = self.rows["train"]
        rows = np.concatenate([train[self.labels[train] == label][: count // 10] for label in range(10)])
        unseen = self.manifest(self.rows["test"][:UNSEEN])
        return Problem("digits", self.manifest(rows), unseen, self.reference, self.trained)


def difficulties(manifest: Manifest, config: ScoreConfig) -> dict[str, float]:
    """Of each image, out of fold."""
    with tempfile.TemporaryDirectory() as spool:
        found = score_images(manifest, config, Scoring(Path(spool)), said()).columns["difficulty"]
    return dict(zip(manifest.column("sample_id"), found.tolist(), strict=True))


def mistakes(problem: Problem) -> list[np.ndarray]:
    """bool [unseen], per seed: what the small network gets wrong."""
    config, found = ScoreConfig.model_validate(SMALL_NET), []
    train, unseen = problem.train, problem.unseen
    if problem.name == "digits":
        config = config.model_copy(update={"hflip": 0.0})
    for seed in range(SEEDS):
        labels = train.column("label").astype(np.int64)
        net = train_classifier(train.paths(), labels, len(train.class_names), config, 100 + seed, "cpu")
        found.append(predict_logits(net, unseen.paths(), config, "cpu").argmax(1) != unseen.column("label"))
    return found


def measured(problem: Problem, pixels: int | None, wrong: list[np.ndarray]) -> dict[str, Any]:
    """pixels: of features; None = trained classifiers."""
    config = ScoreConfig(method="features", feature_size=pixels) if pixels else problem.trained
    with tempfile.TemporaryDirectory() as spool:
        started = time.process_time()
        scored = score_images(problem.train, config, Scoring(Path(spool)), said())
        seconds = time.process_time() - started
        scored.save_scorer(Path(spool) / "kept")
        scorer = Scorer.load(Path(spool) / "kept")
        unseen = scorer.measure(problem.unseen.paths(), problem.unseen.column("label").astype(np.int64))
    labels, difficulty = problem.train.column("label").astype(np.int64), scored.columns["difficulty"]
    known = [problem.reference[sample] for sample in problem.train.column("sample_id")]
    found = {
        "data": problem.name,
        "images": len(problem.train),
        "method": scored.results["method"],
        "pixels": pixels or config.image_size,
        "accuracy": round(scored.results["accuracy"], 4),
        "mean_difficulty": round(float(np.nanmean(difficulty)), 4),
        "calibration_error": round(calibration_error(scored.columns, labels), 4),
        "rank_correlation": round(float(spearmanr(difficulty, known, nan_policy="omit")[0]), 4),
        "foretells_mistakes": round(float(np.mean([roc_auc_score(w, unseen.difficulty) for w in wrong])), 4),
        "small_network_accuracy": round(float(1 - np.mean(wrong)), 4),
        "cpu_seconds": round(seconds, 1),
    }
    print(found, flush=True)
    return found


def said() -> Job:
    """Silent, and on the CPU."""
    return Job()


def cases() -> dict[str, tuple[str, int, tuple[int | None, ...]]]:
    """By name: data, images, pixels (None = trained classifiers)."""
    found: dict[str, tuple[str, int, tuple[int | None, ...]]] = {}
    found |= {f"cifar10-{count}": ("cifar10", count, (*PIXELS, None)) for count in CIFAR10}
    found["cifar10-first-1000"] = ("first", 1000, PIXELS)
    found |= {f"digits-{count}": ("digits", count, (*PIXELS, None)) for count in DIGITS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", choices=cases(), nargs="*", help="measure these only; the others' figures stay")
    parser.add_argument("--pixels", type=int, nargs="*", choices=PIXELS, help="of features: these only")
    parser.add_argument("--reference", type=int, default=50_000, help="images of the better informed classifier")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "bench_features.json"
    chosen = list(given.case or cases())
    old = json.loads(file.read_text("utf-8")).get("rows", {}) if (given.case or given.pixels) and file.is_file() else {}
    rows = {name: row for name, row in old.items() if "rank_correlation" in row}  # of before they had one: made again
    with tempfile.TemporaryDirectory() as place:
        sources: dict[str, Any] = {}
        for name in chosen:
            data, count, ways = cases()[name]
            kind = "digits" if data == "digits" else "cifar10"
            if kind not in sources:
                folder = Path(place)
                sources[kind] = (
                    HandwrittenDigits(folder) if kind == "digits" else Cifar10(given.data, folder, given.reference)
                )
            problem = sources[kind].problem(count, first=True) if data == "first" else sources[kind].problem(count)
            wrong = mistakes(problem)
            for pixels in ways:
                if pixels is None or given.pixels is None or pixels in given.pixels:
                    about = {} if kind == "digits" else {"reference_images": given.reference}
                    rows[f"{name}-{pixels or TRAINED}"] = {**measured(problem, pixels, wrong), **about}
                    body = {"threads": 1, "unseen": UNSEEN, "rows": dict(sorted(rows.items()))}
                    write_result("bench_features", body, {"measured": chosen})


if __name__ == "__main__":
    main()
