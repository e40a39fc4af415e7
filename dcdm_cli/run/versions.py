"""Which versions of what a result was made with."""

from __future__ import annotations

import platform
from importlib import metadata

from dcdm_cli import __version__

RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "peft", "timm", "accelerate")


def recorded_versions() -> dict[str, str]:
    """Of dcdm, Python and what decides about results, as records and reports name them."""
    # by what is installed: nothing is imported for it
    packages = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {"dcdm": __version__, "python": platform.python_version(), **packages}
