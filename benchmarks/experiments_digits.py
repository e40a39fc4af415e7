"""Every experiment of `dcdm evaluate` on the embedded digits, on a CPU, in pieces if wanted.

    python benchmarks/experiments_digits.py [--size 200] [--seeds 8] [--only controls,buckets] [--piece-seconds 540]

--size: real training images (20 to 400, the other splits stay what they are up to 200; above, the judge gives up some).
Results go to benchmarks/results/digits_<size>_<experiment>.json. Code 0 = all done, 3 = run it again to go on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieces import ROOT, Clock, Progress, Step
from record import RESULTS, provenance, write_result

from dcdm_cli.demo.digits import write_digits
from dcdm_cli.evaluation.experiments import built_in_experiments

CLASSES = 10
EPOCH = 1_600_000_000  # of the list of images, so that the same list is not taken for a new one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", default=",".join(built_in_experiments()))
    parser.add_argument("--piece-seconds", type=float, default=None)
    parser.add_argument("--state", type=Path, default=ROOT / "bench-run" / "digits")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="settings of dcdm, to try it out"
    )
    options = parser.parse_args()
    if not CLASSES <= options.size <= 400:
        parser.error("--size must lie between 10 and 400")
    options.state.mkdir(parents=True, exist_ok=True)
    job = Digits(options.state.absolute(), options.size, options.seeds, tuple(options.set), options.results)
    clock, progress = Clock(options.piece_seconds), Progress(options.state)
    waiting = progress.run(list(job.steps(options.only.split(","), clock)), clock)
    print(json.dumps({"done": list(progress.done), "next": waiting}))
    raise SystemExit(3 if waiting else 0)


@dataclass(frozen=True)
class Digits:
    """One real set: its run folder below `state`, and its steps."""

    state: Path
    size: int
    seeds: int
    settings: tuple[str, ...]
    results: Path

    @property
    def run(self) -> str:
        return f"digits-{self.size}"

    def steps(self, experiments: list[str], clock: Clock) -> Iterator[Step]:
        for stage, needs in (("score", 120), ("caption", 20), ("finetune", 20), ("generate", 20)):
            yield Step(f"{self.run} {stage}", lambda s=stage: self._stage(s, clock), needs)
        for name in experiments:
            yield Step(f"{self.run} {name} x {self.seeds}", lambda n=name: self._experiment(n, clock))

    def _dcdm(self, clock: Clock, *words: str) -> None:
        flags = [word for setting in self.settings for word in ("--set", setting)]
        clock.dcdm(*words, "--preset", "digits", *flags, "--run", self.run, folder=self.state)

    def _stage(self, stage: str, clock: Clock) -> dict[str, Any]:
        words = [stage]
        if stage == "score":
            words.append(self._list())
        self._dcdm(clock, *words)
        return {}

    def _list(self) -> str:
        """The real set as a list of files; the first rows of each class are the training set."""
        folder = write_digits(self.state / "digits")
        per_class, lines = self.size // CLASSES, []
        for digit in sorted(path.name for path in (folder / "train").iterdir()):
            files = {split: sorted((folder / split / digit).glob("*.png")) for split in ("train", "judge", "test")}
            more = max(0, per_class - len(files["train"]))
            train = [*files["train"][:per_class], *files["judge"][:more]]
            parts = {"train": train, "judge": files["judge"][more:], "test": files["test"]}
            lines += [
                (file.relative_to(self.state).as_posix(), digit, split)
                for split, part in parts.items()
                for file in part
            ]
        target = self.state / f"{self.run}.csv"
        with target.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("path", "label", "split"), *lines])
        os.utime(target, (EPOCH, EPOCH))
        return target.name

    def _experiment(self, name: str, clock: Clock) -> dict[str, Any]:
        words = ["evaluate", "--experiment", name, "--seeds", str(self.seeds)]
        self._dcdm(clock, *words)
        file = self.state / self.run / "evaluation" / "experiments" / f"{name}.json"
        document = json.loads(file.read_text("utf-8"))
        about = provenance(f"dcdm {' '.join(words)} --preset digits")
        title = f"Digits, {self.size} real images, {name}"
        write_result(
            f"digits_{self.size}_{name}", {"title": title, "settings": self.settings, **about, "document": document},
            self.results,
        )  # fmt: skip
        return {}


if __name__ == "__main__":
    main()
