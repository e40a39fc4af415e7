"""The base model that comes with the package, by its name; importable in no time."""

from __future__ import annotations

from pathlib import Path

TINY_BASE = Path(__file__).parent / "tiny_base"
TINY_NAME = "tiny"


def resolve_base(name: str) -> str:
    """`tiny` is the packaged model, wherever the package lies; anything else is a folder or hub id as it stands."""
    return str(TINY_BASE) if name == TINY_NAME else name
