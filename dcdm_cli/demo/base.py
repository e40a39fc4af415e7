"""Where the demo's base model is; importable without torch."""

from __future__ import annotations

from pathlib import Path

TINY_BASE = Path(__file__).parent / "tiny_base"
TINY_NAME = "tiny"


def resolve_base(name: str) -> str:
    """`tiny` is the packaged model; anything else is a folder or hub id as it stands."""
    return str(TINY_BASE) if name == TINY_NAME else name
