"""The README's figures: `dcdm demo --full`, with hardware, versions and date, as benchmarks/results/demo_full.json.

    python benchmarks/bench_demo.py [--quick] [--run DIR]

Pictures that the README shows are copied to docs/images. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("atlas.png", "adherence.png", "frontier.png", "accuracy.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="dcdm demo without --full")
    parser.add_argument("--run", type=Path, default=ROOT / "bench-run")
    options = parser.parse_args()
    name = "demo_quick" if options.quick else "demo_full"
    words = ["demo", *([] if options.quick else ["--full"]), "--json"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dcdm_cli", *words, "--run", str(options.run)], stdout=subprocess.PIPE, check=True
    )
    result = {
        "command": f"dcdm {' '.join(words)}",
        "wall_seconds": round(time.monotonic() - started, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": {package: metadata.version(package) for package in ("torch", "diffusers", "peft", "timm")},
        "metrics": json.loads(done.stdout),
    }
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if not options.quick:
        copy_pictures(options.run / "evaluation" / "figures", ROOT / "docs" / "images")
    print(json.dumps({"result": file.name, "wall_seconds": result["wall_seconds"], "hardware": result["hardware"]}))


def copy_pictures(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        shutil.copy(source / name, target / name)


def hardware() -> str:
    """CPU name, cores and memory, without host names."""
    import os

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU used"


if __name__ == "__main__":
    main()
