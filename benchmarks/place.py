"""Where `reliability.py` works: a small source, a small run, and snapshots of it before and after stages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import trials
from PIL import Image

STAGES = ("score", "caption", "finetune", "export", "generate", "evaluate")
CLASSES = ("one", "two", "three")
SETTINGS = """
preset = "digits"
threads = 1
[score]
method = "crossfit"
steps = 4
folds = 2
repeats = 1
[finetune]
steps = 4
strength = "none"
batch_size = 4
rank = 4
checkpoint_every = 1
[calibrate]
enabled = false
[generate]
steps = 1
count = 6
ratio = "none"
batch_size = 2
shard_size = 4
[judge]
steps = 4
[downstream]
steps = 4
[evaluate]
arms = ["real", "dcdm"]
seeds = 1
workers = 1
per_target = 4
density_images = 10
atlas_classes = 2
"""


# What is not everybody's: the command, and the state that it goes on from.
_PROBED = ("calibrate.points=8", "calibrate.images=4", "strength.lora_scales=[1.0]", "strength.probe_budget=40")
_PROBED += ("strength.most_copies=1.0", "strength.least_labels=0.0", "strength.keep_back=0.5")
_SMALL = [word for setting in _PROBED for word in ("--set", setting)]
OPTIONAL: dict[str, list[str]] = {
    "calibrate": ["finetune", "--set", "calibrate.enabled=true", *_SMALL],
    "strength": ["finetune", "--strength", "auto", "--set", "strength.checkpoints=[2, 4]", *_SMALL],
    "distill": ["distill", "--set", "distill.steps=4", "--set", "distill.checkpoint_every=1"],
}
JUDGING = {job: ["evaluate", job] for job in ("check", "filter", "atlas", "plan")}


class Place:
    """A folder to work in: a small source, and a snapshot of the run before each stage and after the last."""

    def __init__(self, root: Path) -> None:
        self.root, self.run, self.said = root, root / "run", root / "said"
        self.source = _photos(root / "photos")
        self.seconds: dict[str, float] = {}
        self.after: dict[str, dict[str, str]] = {}

    def words(self, stage: str, *more: object) -> list[object]:
        first = {"score": [stage, self.source], **OPTIONAL, **JUDGING}.get(stage, [stage])
        return [*first, "--run", self.run, *more]

    def prepare(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()
        (self.run / "dcdm.toml").write_text(SETTINGS)
        for stage in STAGES:
            self._keep(f"before-{stage}")
            self._undisturbed(stage)
        self._keep("finished")

    def prepare_optional(self) -> None:
        """`before-<stage>` of what is not everybody's, and `extended`: all of it in one run, whose scorer knows enough
        for a difficulty to be asked for."""
        if (self.root / "extended").exists():
            return
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()
        longer = {"steps = 4\nfolds": "steps = 40\nfolds", "steps = 4\nstrength": "steps = 30\nstrength"}
        longer |= {"steps = 1\ncount": "steps = 2\ncount"}
        text = f"{SETTINGS}[data]\ntest_fraction = 0.5\njudge_fraction = 0.75\n"  # who judges a strength needs 7
        for few, many in longer.items():
            text = text.replace(few, many)
        (self.run / "dcdm.toml").write_text(text)
        for stage in ("score", "caption"):
            self._done(stage)
        self._keep("before-strength")
        self._done("finetune")
        for stage in ("calibrate", "distill"):
            self._keep(f"before-{stage}")
            self._undisturbed(stage)
        for stage in ("generate", "evaluate", *JUDGING):
            self._done(stage)
        self._keep("extended")
        self.reset("before-strength")
        self._undisturbed("strength")

    def _done(self, stage: str) -> trials.Ended:
        ended = self.go(stage)
        assert ended.code == 0, ended.said
        return ended

    def _undisturbed(self, stage: str) -> None:
        ended = self._done(stage)
        self.seconds[stage], self.after[stage] = ended.seconds, trials.picture(self.run)

    def reset(self, state: str) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.root / state, self.run)

    def go(self, stage: str, *more: object, **how: Any) -> trials.Ended:
        return trials.run(self.words(stage, *more), self.said, **how)

    def wrong(self, stage: str) -> list[str]:
        """After the same command has run again: what is not as after an undisturbed run, or was left over."""
        return trials.differences(self.after[stage], trials.picture(self.run)) + self.left()

    def left(self) -> list[str]:
        """What was begun and is not finished."""
        return [path.name for path in self.run.rglob(".*") if ".part" in path.name]

    def _keep(self, state: str) -> None:
        shutil.copytree(self.run, self.root / state)


def _photos(folder: Path) -> Path:
    from dcdm_cli.data.digits import digit_images

    pictures, labels = digit_images()
    for digit, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number, picture in enumerate(pictures[labels == digit][:8]):
            Image.fromarray(picture).convert("RGB").save(folder / name / f"{number}.png")
    return folder
