"""Images of CIFAR-10 that the packaged base has not seen, as anybody's folder of classes: what the tutorial works on.

    python benchmarks/cifar10_photos.py --data FOLDER --out DIR [--side 64]

Writes DIR/photos/<class>/<row>.png: the small target of `cifar10_data.py`, 100 images of each class. --side: enlarged
to so many pixels, for a folder of larger pictures.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from cifar10_data import SIDE, assign, read_images
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=SIDE)
    asked = parser.parse_args()
    images = read_images(asked.data, "train")
    for row in assign(images.labels)["small"].tolist():
        folder = asked.out / "photos" / images.names[images.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(images.content[row])).convert("RGB")
        picture.resize((asked.side, asked.side), Image.Resampling.LANCZOS).save(folder / f"{row:05d}.png")


if __name__ == "__main__":
    main()
