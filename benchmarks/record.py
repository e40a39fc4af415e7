"""What every result says about itself, and how it is written: shared by the scripts beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common import hardware

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "diffusers", "peft", "timm")


def machine() -> str:
    """CPU, memory and, where there is one, the GPU."""
    import torch

    if not torch.cuda.is_available():
        return hardware()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{hardware().removesuffix(', no GPU used')}, {torch.cuda.get_device_name(0)} ({memory:.0f} GiB)"


def provenance(command: str) -> dict[str, Any]:
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": machine(),
        "versions": versions,
    }


def write_result(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(file)
    return file
