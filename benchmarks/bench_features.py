"""What the packaged features are worth as a scorer, beside trained classifiers: CIFAR-10 and digits, by images and
pixels.

    python benchmarks/bench_features.py --data FOLDER   # CIFAR-10 as Parquet: train*.parquet, test*.parquet

One thread. Of each way of scoring: out-of-fold accuracy, mean difficulty, expected calibration error; the rank
correlation of its difficulties with those of a much better informed classifier, and with those of classifiers that were
trained from scratch on the same images; how well its difficulty of unseen images foretells what another classifier of
the same images gets wrong (area under the ROC curve, 0.5 = not at all): a small network from scratch, which trained
scorers have as well, one of another kind, and the packaged network fine-tuned; and CPU seconds, nothing cached. The
better informed classifier of CIFAR-10 is a network trained from scratch on `--reference` other training images (all
that are left are 45,000), which shares nothing with the packaged features; of digits the preset's networks, out of fold
on all 1,797.

`cifar10-first-...` are the first images of the file instead of the stratified selection that the others are parts of.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
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
from dcdm_cli.difficulty.scoring import FINE_TUNED, Scoring, score_images, trained_settings
from dcdm_cli.files import hash_bytes
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.settings import ScoreConfig

PIXELS = (64, 128, 160)
CIFAR10, DIGITS = (500, 1000, 5000), (50, 200)
TRAINED, FINE_TUNED_PIXELS = "trained", 64
UNSEEN = 500  # images that difficulty and the small network are asked about
SEEDS = 2  # of the small network
SMALL_NET = {
    "model": "resnet10t", "model_args": {"channels": [16, 24, 32, 64], "stem_width": 8}, "image_size": 32,
    "batch_size": 32, "steps": 400, "lr": 6e-3, "scale": [0.7, 1.0],
}  # fmt: skip
# Of another kind: no batch norm, large kernels, layers and activations of transformers.
OTHER_NET = {
    **SMALL_NET, "model": "convnext_atto", "lr": 3e-3, "steps": 600,
    "model_args": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128], "patch_size": 2, "drop_path_rate": 0.0},
}  # fmt: skip
# What users have: a network that was trained on other photographs, fine-tuned on these.
PRETRAINED_NET = {
    "model": "packaged", "pretrained": True, "image_size": 64, "batch_size": 32, "steps": 200, "lr": 3e-4,
    "scale": [0.7, 1.0],
}  # fmt: skip
REFERENCE_NET = {**SMALL_NET, "model_args": {"channels": [16, 32, 64, 128], "stem_width": 16}, "batch_size": 128}
EPOCHS = 6  # of the better informed classifier


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
    """folder: for files; reference: how many other training images the better informed classifier learns from, at
    most."""

    def __init__(self, data: Path, folder: Path, reference: int) -> None:
        self.images, self.folder = read_images(data, "train"), folder
        self.parts = assign(self.images.labels)
        test = read_images(data, "test")
        self.unseen = in_folder(test, np.arange(UNSEEN), folder, "test")
        asked = np.union1d(self.parts["target"], np.arange(1000))  # `first` begins with these
        others = np.setdiff1d(np.arange(len(self.images.labels)), asked)[:reference]
        self.reference, self.informed = self._informed(others, asked)

    def _informed(self, rows: np.ndarray, asked: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
        """(difficulty of the asked images by a network that learned from other ones, what is to be known of it)"""
        steps = EPOCHS * len(rows) // REFERENCE_NET["batch_size"]
        config = ScoreConfig.model_validate({**REFERENCE_NET, "steps": steps})
        train, other = (in_folder(self.images, some, self.folder, "train") for some in (rows, asked))
        labels = train.column("label").astype(np.int64)
        net = train_classifier(train.paths(), labels, len(train.class_names), config, 7, "cpu")
        logits = torch.from_numpy(predict_logits(net, other.paths(), config, "cpu"))
        label = torch.from_numpy(other.column("label").astype(np.int64))
        right = logits.softmax(1).gather(1, label[:, None])[:, 0]
        accuracy = round(float((logits.argmax(1) == label).float().mean()), 4)
        known = dict(zip(other.column("sample_id"), (1 - right).tolist(), strict=True))
        return known, {"images": len(rows), "epochs": EPOCHS, "accuracy": accuracy}

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


def mistakes(problem: Problem, network: dict[str, Any]) -> list[np.ndarray]:
    """bool [unseen], per seed: what a network gets wrong that learns from the problem's images."""
    config, found = ScoreConfig.model_validate(network), []
    train, unseen = problem.train, problem.unseen
    if problem.name == "digits":
        config = config.model_copy(update={"hflip": 0.0})
    for seed in range(SEEDS):
        labels = train.column("label").astype(np.int64)
        net = train_classifier(train.paths(), labels, len(train.class_names), config, 100 + seed, "cpu")
        found.append(predict_logits(net, unseen.paths(), config, "cpu").argmax(1) != unseen.column("label"))
    return found


def config_of(problem: Problem, way: int | str) -> ScoreConfig:
    """way: pixels of features, or which trained classifiers."""
    if way == FINE_TUNED:
        found = trained_settings(ScoreConfig(folds=2, repeats=1), FINE_TUNED_PIXELS)[FINE_TUNED]
        mirrored = {"hflip": 0.0} if problem.name == "digits" else {}
        return found.model_copy(update={"batch_size": 32, **mirrored})
    return problem.trained if way == TRAINED else ScoreConfig(method="features", feature_size=int(way))


def measured(
    problem: Problem, way: int | str, wrong: Sequence[list[np.ndarray]], trained: dict[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """(the row, difficulty by sample id). wrong: of the small network, of the other one and of the fine-tuned
    one. trained: difficulties by classifiers trained on the same images."""
    config = config_of(problem, way)
    with tempfile.TemporaryDirectory() as spool:
        started = time.process_time()
        scored = score_images(problem.train, config, Scoring(Path(spool)), said())
        seconds = time.process_time() - started
        scored.save_scorer(Path(spool) / "kept")
        scorer = Scorer.load(Path(spool) / "kept")
        unseen = scorer.measure(problem.unseen.paths(), problem.unseen.column("label").astype(np.int64))
    labels, difficulty = problem.train.column("label").astype(np.int64), scored.columns["difficulty"]
    samples = problem.train.column("sample_id").tolist()
    found = {
        "data": problem.name,
        "images": len(problem.train),
        "method": scored.results["method"],
        "pixels": config.feature_size if config.method == "features" else config.image_size,
        "accuracy": round(scored.results["accuracy"], 4),
        "mean_difficulty": round(float(np.nanmean(difficulty)), 4),
        "calibration_error": round(calibration_error(scored.columns, labels), 4),
        "rank_correlation": correlation(difficulty, [problem.reference[sample] for sample in samples]),
        "correlation_with_trained": correlation(difficulty, [trained[s] for s in samples]) if trained else None,
        "foretells_mistakes": foretold(wrong[0], unseen.difficulty),
        "small_network_accuracy": round(float(1 - np.mean(wrong[0])), 4),
        "foretells_other": foretold(wrong[1], unseen.difficulty),
        "other_network_accuracy": round(float(1 - np.mean(wrong[1])), 4),
        "foretells_pretrained": foretold(wrong[2], unseen.difficulty),
        "pretrained_network_accuracy": round(float(1 - np.mean(wrong[2])), 4),
        "cpu_seconds": round(seconds, 1),
    }
    print(found, flush=True)
    return found, dict(zip(samples, difficulty.tolist(), strict=True))


def foretold(wrong: list[np.ndarray], difficulty: np.ndarray) -> float:
    """Area under the ROC curve, mean over seeds."""
    return round(float(np.mean([roc_auc_score(mistaken, difficulty) for mistaken in wrong])), 4)


def correlation(first: np.ndarray, second: list[float]) -> float:
    """Of ranks, where both are known."""
    return round(float(spearmanr(first, second, nan_policy="omit")[0]), 4)


COLUMNS = {
    "accuracy": "right", "mean_difficulty": "hard", "calibration_error": "calibration error",
    "rank_correlation": "rank, informed", "correlation_with_trained": "rank, trained",
    "foretells_mistakes": "foretells", "foretells_other": "foretells, other",
    "foretells_pretrained": "foretells, pretrained", "cpu_seconds": "CPU s",
}  # fmt: skip


def table(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For documents: a row per problem and way, trained classifiers first."""

    def cells(name: str, row: Mapping[str, Any]) -> list[Any]:
        values = ["-" if row.get(column) is None else row[column] for column in COLUMNS]
        return [f"{row['data']}, {row['images']}", _way(name, row), *values]

    def place(item: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
        row = item[1]
        return row["data"], row["images"], row["method"] == "features", row["pixels"]

    ordered = sorted(rows.items(), key=place)
    columns = ["images", "way", *COLUMNS.values()]
    return {"title": "Ways of scoring", "columns": columns, "rows": [cells(*item) for item in ordered]}


def _way(name: str, row: Mapping[str, Any]) -> str:
    if row["method"] == "features":
        return f"features, {row['pixels']} px"
    return FINE_TUNED if name.endswith(FINE_TUNED) else TRAINED


def said() -> Job:
    """Silent, and on the CPU."""
    return Job()


def cases() -> dict[str, tuple[str, int, tuple[int | str, ...]]]:
    """By name: data, images, ways of scoring; trained classifiers first, with which the others are compared."""
    found: dict[str, tuple[str, int, tuple[int | str, ...]]] = {}
    for count in CIFAR10:
        found[f"cifar10-{count}"] = ("cifar10", count, (TRAINED, *PIXELS, FINE_TUNED))
    found["cifar10-first-1000"] = ("first", 1000, (TRAINED, *PIXELS))
    found |= {f"digits-{count}": ("digits", count, (TRAINED, *PIXELS, FINE_TUNED)) for count in DIGITS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", choices=cases(), nargs="*", help="measure these only; the others' figures stay")
    parser.add_argument("--reference", type=int, default=45_000, help="images of the better informed classifier")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "bench_features.json"
    chosen = list(given.case or cases())
    old = json.loads(file.read_text("utf-8")).get("rows", {}) if given.case and file.is_file() else {}
    rows = {name: row for name, row in old.items() if "correlation_with_trained" in row}
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
            wrong = [mistakes(problem, network) for network in (SMALL_NET, OTHER_NET, PRETRAINED_NET)]
            trained: dict[str, float] = {}
            for way in ways:
                row, difficulty = measured(problem, way, wrong, trained)
                trained = trained or difficulty
                about = {} if kind == "digits" else {"reference": sources[kind].informed}
                rows[f"{name}-{way}".replace(" ", "-")] = {**row, **about}
                body = {"threads": 1, "unseen": UNSEEN, "rows": dict(sorted(rows.items())), "tables": [table(rows)]}
                write_result("bench_features", body, {"measured": chosen})


if __name__ == "__main__":
    main()
