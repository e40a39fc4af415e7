"""Whether two worker processes make what one process makes, on a real device: the same images, and how fast.

    python benchmarks/gpu_two.py               two workers, on two GPUs where there are two, else both on the one
    python benchmarks/gpu_two.py --sketch      two workers on the CPU

A short run on the embedded digits, through the command line as users call it. Ends without a result when an image
differs by more than rounding. Writes results/gpu_two.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import WORK, gpu_or_sketch, write_result
from pieces import Clock
from PIL import Image

COUNT, ALIKE = 400, 2  # images; of 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", action="store_true")
    options = parser.parse_args()
    name = gpu_or_sketch("gpu_two", sketch=options.sketch)
    if name is None:
        return
    device = "cpu" if options.sketch else "cuda"
    several = torch.cuda.device_count() > 1
    devices = "cpu,cpu" if options.sketch else "cuda:0,cuda:1" if several else "cuda:0,cuda:0"
    count, folder = (20 if options.sketch else COUNT), WORK / "gpu-two"
    prepare(folder, device)
    sides = {"one process": (), devices: ("--devices", devices)}
    seconds = {side: generate(folder, device, words, count, str(i)) for i, (side, words) in enumerate(sides.items())}
    worst = largest_difference(*(sorted((folder / "sets" / str(i)).rglob("*.png")) for i in range(2)))
    if worst > ALIKE:
        sys.exit(f"two processes make other images than one: they differ by up to {worst} of 255")
    found = {"images": count, "seconds": seconds, "largest difference of 255": worst}
    write_result(name, document(found), found)


def document(found: dict[str, Any]) -> dict[str, Any]:
    """With what `documents.py` shows of it."""
    rows = [[side, taken, round(found["images"] / taken, 2)] for side, taken in found["seconds"].items()]
    sheet = {"title": "The whole command, its start included", "columns": ["", "s", "images/s"], "rows": rows}
    said = f"Two processes make the images of one, to within {found['largest difference of 255']} of 255."
    title = f"Two worker processes against one: {found['images']} digits"
    return {"title": title, "sentences": [said], "tables": [sheet], **found}


def prepare(folder: Path, device: str) -> None:
    """Scored, captioned and fine-tuned for a few steps: what is compared is the way to the images, not the images."""
    shutil.rmtree(folder, ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    dcdm("score", "digits:50", "--preset", "digits", "--method", "features", "--run", str(folder), "--device", device)
    dcdm("caption", "--run", str(folder))
    short = ("--strength", "none", "--steps", "20", "--set", "calibrate.enabled=false")
    dcdm("finetune", *short, "--run", str(folder), "--device", device)


def generate(folder: Path, device: str, words: tuple[str, ...], count: int, name: str) -> float:
    started = time.monotonic()
    sizes = ("--count", str(count), "--shard-size", str(max(5, count // 8)), "--backend", "torch")
    dcdm("generate", "--name", name, *sizes, *words, "--run", str(folder), "--device", device)
    return round(time.monotonic() - started, 1)


def largest_difference(ours: list[Path], theirs: list[Path]) -> int:
    """Of 255, over all images. Raises SystemExit when they are not the same files."""
    if not ours or [file.name for file in ours] != [file.name for file in theirs]:
        sys.exit("two processes made other files than one")
    pairs = zip(ours, theirs, strict=True)
    return max(int(np.abs(pixels(one) - pixels(two)).max()) for one, two in pairs)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image, np.int16)


def dcdm(*words: str) -> None:
    Clock(None).dcdm(*words, folder=WORK)


if __name__ == "__main__":
    main()
