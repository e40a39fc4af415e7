"""Rebuilds the packaged checker of the digits preset: a classifier that knows digits from elsewhere.

    python benchmarks/bases/digits_checker.py --data MNIST_TRAIN.parquet [--out DIR] [--steps N]

Trained on MNIST's training images in many styles (styles.py), never on the target data, so that its word on whether a
generated image shows its label does not come from the scorer's images. `origin.json` beside the weights says how often
it agrees with the labels of scikit-learn's training and judge digits, which it has not seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from digits_base import DATA, STYLES
from styles import read_digits, styled

from dcdm_cli.data.digits import digit_images, split_rows
from dcdm_cli.difficulty.classifier import load_classifier, predict_logits, save_classifier, train_classifier
from dcdm_cli.files import write_json
from dcdm_cli.run.settings import ClassifierConfig

OUT = Path(__file__).resolve().parents[2] / "dcdm_cli" / "difficulty" / "digits_checker"
RECIPE = {
    "model": "resnet10t", "model_args": {"channels": [16, 32, 64, 96], "stem_width": 16}, "image_size": 32,
    "batch_size": 64, "steps": 3000, "lr": 4e-3, "scale": (0.6, 1.0), "hflip": 0.0, "rotate": 12.0,
    "label_smoothing": 0.05,
}  # fmt: skip
NAMES = tuple("0123456789")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="MNIST's training images as Parquet")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    options = parser.parse_args()
    config = ClassifierConfig.model_validate({**RECIPE, "steps": options.steps})
    digits, labels = read_digits(options.data)
    images = np.repeat(styled(digits, STYLES, seed=1)[..., None], 3, axis=-1)
    clock = time.monotonic()
    model = train_classifier(images, np.tile(labels, STYLES), len(NAMES), config, 0, "cpu", progress)
    save_classifier(model, options.out, NAMES, config)
    stored = load_classifier(options.out)
    write_json(options.out / "origin.json", {
        "data": DATA,
        "command": "python benchmarks/bases/digits_checker.py --data MNIST_TRAIN.parquet",
        "seconds": round(time.monotonic() - clock, 1),
        "torch": torch.__version__,
        "agrees_with_unseen_digits": agreement(stored.model, stored.config),
    })  # fmt: skip


def agreement(model: torch.nn.Module, config: ClassifierConfig) -> dict[str, float]:
    """Share of scikit-learn's digits whose label it gives, by split. The test split is left alone."""
    images, labels = digit_images()
    rows = {name: found for name, found in split_rows(labels).items() if name != "test"}
    pixels = np.repeat(images[..., None], 3, axis=-1)
    guesses = {name: predict_logits(model, pixels[mine], config, "cpu").argmax(1) for name, mine in rows.items()}
    return {name: round(float((guesses[name] == labels[mine]).mean()), 4) for name, mine in rows.items()}


def progress(what: str, done: int, total: int) -> None:
    if done % 200 == 0:
        print(what, done, total, flush=True)


if __name__ == "__main__":
    main()
