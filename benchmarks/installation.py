"""What an installation takes on the disk, by package, and how much of it a machine without a GPU can leave out.

Counts what pip recorded of this environment: the packages that dcdm-cli needs, and those that these need. Nothing is
downloaded. `python benchmarks/installation.py` writes `results/installation.json`, which docs/install.md quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from common import write_result
from packaging.requirements import Requirement

# Serve GPUs alone, and do not come with torch's wheels for CPUs.
FOR_GPUS = re.compile(r"nvidia-.*|triton|cuda-.*")
MIB = 2**20


def needed(name: str) -> Iterator[str]:
    """The distribution and everything it needs here, extras aside, each once."""
    waiting, seen = [name], set()
    while waiting:
        this = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if this in seen:
            continue
        seen.add(this)
        try:
            lines = metadata.requires(this) or []
        except metadata.PackageNotFoundError:
            continue
        yield this
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
                waiting += [f for extra in requirement.extras for f in _of_extra(requirement.name, extra)]


def _of_extra(name: str, extra: str) -> list[str]:
    try:
        lines = map(Requirement, metadata.requires(name) or [])
    except metadata.PackageNotFoundError:
        return []
    return [r.name for r in lines if r.marker is not None and r.marker.evaluate({"extra": extra})]


def size(name: str) -> int:
    """Bytes of the files that pip has put there; compiled copies of Python files are not counted."""
    files = metadata.files(name) or []
    places = (Path(str(file.locate())) for file in files if not str(file).endswith(".pyc"))
    return sum(place.stat().st_size for place in places if place.is_file())


def main() -> None:
    sizes = {name: size(name) / MIB for name in needed("dcdm-cli")}
    gpu = sum(mib for name, mib in sizes.items() if FOR_GPUS.fullmatch(name))
    total = sum(sizes.values())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:12]
    facts = {
        "packages": len(sizes),
        "total_gib": round(total / 1024, 2),
        "gpu_libraries_gib": round(gpu / 1024, 2),
        "without_gpu_libraries_gib": round((total - gpu) / 1024, 2),
        "tables": [
            {
                "title": "The largest packages of an installation",
                "columns": ["package", "MiB"],
                "rows": [[name, f"{mib:.0f}"] for name, mib in largest],
            }
        ],
    }
    write_result("installation", facts, facts)


if __name__ == "__main__":
    main()
