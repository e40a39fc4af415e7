"""The feature extractor that comes with the package, by its name; importable in no time."""

from __future__ import annotations

from pathlib import Path

PACKAGED = "packaged"
ARCHITECTURE = "tf_efficientnet_lite0"  # timm's name
FOLDER = Path(__file__).parent / "lite0"  # weights, timm's config.json, origin.json and licence
