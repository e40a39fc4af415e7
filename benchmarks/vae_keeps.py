"""What a small base's VAE keeps of real images: no generator on top of it can show more.

    python benchmarks/vae_keeps.py --data CIFAR10_DIR NAME=FOLDER [NAME=FOLDER ...]

A head on the packaged features learns the classes from 5,000 images, and then looks at 2,500 others, as they are and as
each VAE rebuilds them. Writes results/vae_keeps.json and ends with its headline as JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_data import assign, read_images
from common import write_result
from diffusers import AutoencoderKL

from dcdm_cli.difficulty.classifier import logits_of
from dcdm_cli.difficulty.features import open_extractor
from dcdm_cli.difficulty.linear import Lesson, fit_head

EVERY_JUDGE, EVERY_TARGET, BATCH = 4, 2, 100  # of the images for the judge and of the target set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("bases", nargs="+", metavar="NAME=FOLDER")
    options = parser.parse_args()
    images = read_images(options.data, "train")
    rows = assign(images.labels)
    learnt, seen = rows["judge"][::EVERY_JUDGE], rows["target"][::EVERY_TARGET]
    extractor = open_extractor("packaged", None, "cpu")

    def embed(pixels: np.ndarray) -> np.ndarray:
        return logits_of([extractor.network], pixels.transpose(0, 2, 3, 1), extractor.preprocessing, "cpu")[0]

    names = [str(row) for row in learnt]
    head = fit_head(Lesson(embed(images.pixels(learnt)), images.labels[learnt], names, len(images.names)), 0)
    pixels, labels = images.pixels(seen), images.labels[seen]

    def right(shown: np.ndarray) -> float:
        return round(float((head.logits(embed(shown)).argmax(1) == labels).mean()), 4)

    table: list[dict[str, Any]] = [{"images": "real", "accuracy": right(pixels)}]
    for name, folder in (text.split("=", 1) for text in options.bases):
        made = rebuilt(Path(folder), pixels)
        error = float(((made.astype(float) - pixels) ** 2).mean())
        table.append({"images": name, "accuracy": right(made), "PSNR, dB": round(10 * np.log10(255**2 / error), 2)})
    columns = ["images", "accuracy", "PSNR, dB"]
    cells = [[row["images"], f"{row['accuracy']:.1%}", row.get("PSNR, dB", "–")] for row in table]
    sheet = {"title": "What a classifier sees in images that a VAE rebuilt", "columns": columns, "rows": cells}
    title = f"CIFAR-10, {len(seen)} real images, as they are and rebuilt"
    write_result("vae_keeps", {"title": title, "tables": [sheet], "table": table}, {"table": table})


@torch.no_grad()
def rebuilt(folder: Path, pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, 3, 32, 32] -> the same, through a pipeline folder's VAE."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
    parts = torch.from_numpy(pixels).float().div(127.5).sub(1).split(BATCH)
    made = torch.cat([vae(part).sample for part in parts])
    return made.add(1).mul(127.5).round().clamp(0, 255).byte().numpy()


if __name__ == "__main__":
    main()
