"""What the demo's base model and images are called, and where the model is; importable in no time."""

from __future__ import annotations

from pathlib import Path

TINY_BASE = Path(__file__).parent / "tiny_base"
TINY_NAME = "tiny"
SOURCE_NAME = "digits"  # what `dcdm score` calls the embedded images


def resolve_base(name: str) -> str:
    """`tiny` is the packaged model; anything else is a folder or hub id as it stands."""
    return str(TINY_BASE) if name == TINY_NAME else name
