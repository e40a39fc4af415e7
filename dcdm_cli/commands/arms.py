"""The arms of the downstream comparison, and the generated sets behind them."""

from __future__ import annotations

import shutil
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dcdm_cli.commands.finetune import train_adapter
from dcdm_cli.commands.generate import draw_plan
from dcdm_cli.commands.probing import make_measure, open_run_engine
from dcdm_cli.config import nearest
from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.downstream import Arm, Samples
from dcdm_cli.files import hash_json
from dcdm_cli.job import Job
from dcdm_cli.store import Outcome, Stage

if TYPE_CHECKING:
    from dcdm_cli.commands.options import Context
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.generation.engine import Engine

# Target distributions; dcdm uses the run's own --difficulty. Plain has no difficulty, so its target means nothing.
TARGETS = {"easy": "normal:0.1,0.1", "hard": "normal:0.8,0.1", "plain": "fixed:0", "dcdm": None}
ARMS = ("real", "upsampled", *TARGETS)


def make_arms(context: Context, manifest: Manifest, job: Job) -> list[Arm]:
    """Raises UsageError for an unknown arm. Sets are generated when a classifier first asks for them."""
    for name in context.config.evaluate.arms:
        if name not in ARMS:
            raise UsageError(f"unknown arm {name!r}", nearest(name, list(ARMS)))
    sets = GeneratedSets(context, job)
    return [_arm(name, context, manifest, sets) for name in context.config.evaluate.arms]


def _arm(name: str, context: Context, manifest: Manifest, sets: GeneratedSets) -> Arm:
    train = manifest.split("train")
    real = Samples(train.paths(), train.column("label"))
    if name == "real":
        return Arm(name, lambda seed: Samples([], np.zeros(0, np.int64)), "")
    if name == "upsampled":
        copies = max(1, round(context.config.evaluate.synthetic_ratio))
        repeated = Samples(list(real.paths) * copies, np.tile(real.labels, copies))
        return Arm(name, lambda seed: repeated, str(copies))
    return Arm(name, lambda seed: sets.make(name, seed), sets.key(name))


class GeneratedSets:
    """Generates an arm's images under evaluation/sets/, one set per seed or one for all; finished ones are reused."""

    def __init__(self, context: Context, job: Job) -> None:
        self.context, self.job = context, job
        self.engine = cache(self._engine)

    def key(self, name: str) -> str:
        records = [self.context.run.require("finetune").id, getattr(self.context.run.record("calibrate"), "id", "")]
        return hash_json(
            [name, records, self._config(name, 0).model_dump(mode="json"), self._plain_config().model_dump(mode="json")]
        )

    def make(self, name: str, seed: int) -> Samples:
        from dcdm_cli.generation.bulk import run_plan

        offset = seed if self.context.config.evaluate.fresh_sets else self.context.config.evaluate.seed
        config = self._config(name, offset)
        engine = self.engine(name == "plain")
        plan = draw_plan(self.context, config, engine)
        folder = self.context.run.evaluation / "sets" / f"{name}-{plan.hash[:8]}"
        # The plain control knows nothing of difficulty: its images are neither measured nor drawn again.
        measure = None if name == "plain" else make_measure(self.context, self.job)
        manifest = run_plan(plan, engine, folder, self.job, measure).manifest
        return Samples(manifest.paths(), manifest.column("label"))

    def _config(self, name: str, seed: int):
        config = self.context.config
        update = {"ratio": config.evaluate.synthetic_ratio, "count": None, "per_class": None, "seed": seed}
        if TARGETS[name] is not None:
            update |= {"difficulty": TARGETS[name], "difficulty_cap": 1.0}
        return config.generate.model_copy(update=update)

    def _engine(self, plain: bool) -> Engine:
        if not plain:
            return open_run_engine(self.context, self.context.run.adapter, self.job)
        folder = self.context.run.evaluation / "plain_adapter"
        config = self._plain_config()
        inputs = {"finetune": self.context.run.require("finetune").id}
        stage = Stage("plain-finetune", config.model_dump(mode="json"), inputs)

        def work() -> Outcome:
            return Outcome([folder], "", train_adapter(self.context, config, folder, self.job), self.job.device)

        self.context.run.run(stage, work)
        shutil.rmtree(self.context.run.checkpoints / folder.name, ignore_errors=True)
        return open_run_engine(self.context, folder, self.job)

    def _plain_config(self):
        """The control: the same LoRA, steps and images, knowing nothing of difficulty."""
        update = {"conditioning": "none", "difficulty_balance": 0.0}
        return self.context.config.finetune.model_copy(update=update)
