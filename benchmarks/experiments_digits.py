"""Every experiment of `dcdm evaluate` on the embedded digits, on a CPU, in pieces if wanted.

    python benchmarks/experiments_digits.py --run demo-run --setting cpu --piece-seconds 540

--run DIR: a run that `dcdm demo` has finished. Its scorer, adapter, calibration, plain LoRA and finished classifiers
are gone on with. Without it a run of --size real images is made first (20 to 400; the other splits stay what they are
up to 200; above, the judge gives up some): in --state, where runs of several sizes lie side by side.
--setting: full = the built-in experiments, 8 seeds each: hours. cpu = 3 to 5 seeds, and the ablation with adapters that
learn for 300 steps and half as many images: about half an hour on 2 cores on top of `dcdm demo`. tiny = to try it out.
--only adherence,controls: some of them. --seeds N: for all of them, instead of the setting's.
--tune FILE: instead of all that an experiment of your own (docs/evaluate.md), tested on validation images.
--confirm FILE: the same on the test images, from the export, which is faster. --first-seed N: of a run that is made, so
that what is confirmed meets seeds by which nothing was chosen. --no-export: from PyTorch, which is sooner done where
many adapters make few images each.

Results go to benchmarks/results/digits_<size>_<experiment>.json as soon as they are there. The last line is JSON: which
steps are done, and which waits. Code 0 = all done, 3 = run it again to go on; finished classifiers are never repeated.
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

import tomlkit
from common import RESULTS, provenance, save
from digits_settings import ORDER, SETTINGS, Setting, shortened
from pieces import ROOT, Clock, Done, Step

from dcdm_cli.data.digits import write_digits
from dcdm_cli.run.store import RunFolder

CLASSES = 10
VALIDATION = ("--holdout", "validation")
DEMO_SIZE = 50  # real training images of the demo
EPOCH = 1_600_000_000  # of the list of images, so that the same list is not taken for a new one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished run of dcdm demo, to go on with")
    parser.add_argument("--size", type=int, default=DEMO_SIZE)
    parser.add_argument("--setting", choices=SETTINGS, default="full")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--only", default=",".join(ORDER))
    parser.add_argument("--tune", type=Path, default=None)
    parser.add_argument("--confirm", type=Path, default=None)
    parser.add_argument("--first-seed", type=int, default=None)
    parser.add_argument("--no-export", dest="exported", action="store_false")
    parser.add_argument("--piece-seconds", type=float, default=None)
    parser.add_argument("--state", type=Path, default=ROOT / "bench-run" / "digits")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",")]
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        parser.error(f"--only: no experiment {unknown[0]!r}; there are {', '.join(ORDER)}")
    if options.run and options.size != DEMO_SIZE:
        parser.error(f"--run is a run of the demo, which has {DEMO_SIZE} real images: leave --size out")
    if not 2 * CLASSES <= options.size <= 400:
        parser.error("--size must lie between 20 and 400")
    options.state.mkdir(parents=True, exist_ok=True)
    clock, progress = Clock(options.piece_seconds), Done(options.state)
    job = Digits(
        options.state.absolute(),
        options.run,
        options.size,
        options.setting,
        options.results,
        clock,
        first_seed=options.first_seed,
        exported=options.exported,
    )
    alone = options.tune or options.confirm
    steps = job.steps([] if alone else names, options.seeds, options.tune, options.confirm)
    waiting = progress.run(list(steps), clock)
    progress.leave(waiting)


@dataclass(frozen=True)
class Digits:
    """One real set: its run folder, below `state` or the demo's, and its steps."""

    state: Path
    demo: Path | None
    size: int
    name: str
    results: Path
    clock: Clock
    first_seed: int | None = None
    exported: bool = True

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.name]

    @property
    def run(self) -> Path:
        return self.demo.absolute() if self.demo else self.state / f"digits-{self.size}-{self.name}"

    def steps(
        self, experiments: list[str], seeds: int | None, tune: Path | None = None, confirm: Path | None = None
    ) -> Iterator[Step]:
        about = f"{self.run.name}, {self.name}"
        if self.demo:
            made = RunFolder(self.run).require("finetune").started
            about += f", fine-tuned {made}"  # another run in the same place has experiments of its own
        if not self.demo:
            yield Step(f"{about}: images", self._images)
            for stage, needs in (("score", 120), ("caption", 20), ("finetune", 20), ("generate", 20)):
                yield Step(f"{about}: {stage}", lambda s=stage: self._stage(s), needs)
        for name in experiments:
            count = seeds or self.setting.seeds[name]
            yield Step(f"{about}: {name} x {count}", lambda n=name, c=count: self._experiment(n, c))
        if tune:
            count = seeds or self.setting.seeds["buckets"]
            yield Step(f"{about}: {tune.stem} x {count}", lambda: self._own(tune.absolute(), count, *VALIDATION))
        if confirm:
            count = seeds or self.setting.seeds["buckets"]
            if self.exported:
                yield Step(f"{about}: export", lambda: self._stage("export"))
            yield Step(f"{about}: {confirm.stem} x {count}", lambda: self._own(confirm.absolute(), count))

    def _images(self) -> dict[str, Any]:
        """Settings and the real set as a list of files; the first rows of each class are the training set."""
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
        target = self._list()
        with target.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("path", "label", "split"), *lines])
        os.utime(target, (EPOCH, EPOCH))
        self.run.mkdir(exist_ok=True)
        settings: dict[str, Any] = {"preset": "digits", "data": {"source": str(target)}, **self.setting.settings}
        settings["generate"] = {"check": "digits", **settings.get("generate", {})}  # as in the demo
        if self.first_seed is not None:
            settings["evaluate"] = {**settings.get("evaluate", {}), "seed": self.first_seed}
        (self.run / "dcdm.toml").write_text(tomlkit.dumps(settings), "utf-8")
        return {"images": len(lines)}

    def _list(self) -> Path:
        return self.state / f"digits-{self.size}.csv"

    def _stage(self, stage: str) -> dict[str, Any]:
        words = [str(self._list())] if stage == "score" else []
        self.clock.dcdm(stage, *words, "--run", str(self.run), folder=self.state)
        return {}

    def _experiment(self, name: str, seeds: int) -> dict[str, Any]:
        which, place = name, name
        if short := self.setting.short.get(name):
            place = f"{name}-short"
            which = f"{place}.toml"
            (self.state / which).write_text(shortened(name, short), "utf-8")
        return self._evaluate(name, place, "experiment", which, "--seeds", str(seeds))

    def _own(self, file: Path, seeds: int, *words: str) -> dict[str, Any]:
        """An experiment of one's own."""
        (self.state / file.name).write_bytes(file.read_bytes())
        asked = ("experiment", file.name, *words, "--seeds", str(seeds))
        return self._evaluate(file.stem.removeprefix("digits_"), file.stem, *asked)

    def _evaluate(self, name: str, place: str, *words: str) -> dict[str, Any]:
        """`dcdm evaluate` with these words. place: the experiment's name in the run folder; name: in the results."""
        self.clock.dcdm("evaluate", *words, "--run", str(self.run), folder=self.state)
        file = self.run / "evaluation" / "experiments" / f"{place}.json"
        facts = provenance(" ".join(("dcdm evaluate", *words)))
        about = {"title": f"Digits, {self.size} real images, {name}", "setting": self.name, **facts}
        save({**about, "document": json.loads(file.read_text("utf-8"))}, f"digits_{self.size}_{name}", self.results)
        return {}


if __name__ == "__main__":
    main()
