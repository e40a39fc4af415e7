"""The README's figures: `dcdm demo`, with hardware, versions and date, as benchmarks/results/demo_quick.json.

    python benchmarks/bench_demo.py --quick [--run DIR]

Without --quick all arms and more seeds, as demo_full.json.

Pictures that the README shows are copied to docs/images. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, write_result

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
    wall = {"wall_seconds": round(time.monotonic() - started, 1)}
    if options.quick:
        copy_pictures(options.run / "evaluation" / "figures", ROOT / "docs" / "images")
    write_result(name, {"command": f"dcdm {' '.join(words)}", **wall, "metrics": json.loads(done.stdout)}, wall)


def copy_pictures(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        shutil.copy(source / name, target / name)


if __name__ == "__main__":
    main()
