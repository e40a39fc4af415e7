"""The README's commands on a folder of pictures with the preset `small`, timed.

    python benchmarks/cifar10_photos.py --data FOLDER --out DIR --side 64
    python benchmarks/bench_first_look.py --photos DIR/photos --run DIR/first-look [--side 64]

Run again, it goes on where it was; of a run that is finished the recorded seconds are read. --side: pixels per side of
the pictures, for the title.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, save

from dcdm_cli.run.store import RunFolder

STAGES = {
    "score": ("score",), "caption": ("caption",), "finetune": ("finetune", "calibrate"), "export": ("export",),
    "generate": ("generate",), "evaluate": ("evaluate",),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--side", type=int, default=64)
    asked = parser.parse_args()
    for command in STAGES if RunFolder(asked.run).record("evaluate") is None else ():
        more = [str(asked.photos), "--preset", "small"] if command == "score" else []
        subprocess.run([sys.executable, "-m", "dcdm_cli", command, *more, "--run", str(asked.run)], check=True)
    facts = provenance("python benchmarks/bench_first_look.py")
    save({**facts, **measured(RunFolder(asked.run), asked.side)}, f"first_look_{asked.side}", RESULTS)


def measured(run: RunFolder, side: int) -> dict[str, Any]:
    """Seconds of each command by its records, and what the evaluation says."""
    seconds = {name: sum(run.require(stage).seconds for stage in stages) for name, stages in STAGES.items()}
    scored, evaluated = run.require("score").results, run.require("evaluate").results
    pair = next(p for p in evaluated["downstream"]["paired"] if (p["arm"], p["against"]) == ("dcdm", "real"))
    minutes = round(sum(seconds.values()) / 60, 1)
    return {
        "title": f"A first look at pictures of {side} px, from score to report",
        "headline": {"minutes": minutes, "images": scored["images"], "gain": pair["difference_mean"]},
        "sentences": [f"{minutes} minutes in all, each command's start (two to three seconds) apart."],
        "tables": [
            {
                "title": "Seconds by command",
                "columns": [*seconds, "all"],
                "rows": [[*(f"{value:.0f}" for value in seconds.values()), f"{60 * minutes:.0f}"]],
            }
        ],
    }


if __name__ == "__main__":
    main()
