"""What a result of an experiment says about itself, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import RESULTS, hardware, versions

PACKAGES = ("torch", "diffusers", "peft", "timm")


def provenance(command: str) -> dict[str, Any]:
    """Command, day, machine and versions, as `dcdm evaluate --suite` prints them below a result."""
    found = versions()
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": {package: found[package] for package in PACKAGES},
    }


def write_result(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(file)
    return file
