"""Executing a plan with an engine of this process: images, and the folder that training loaders read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dcdm_cli.data.shard_files import Layout
from dcdm_cli.difficulty.verdict import Measure
from dcdm_cli.generation.coordinator import Generated, run_shards
from dcdm_cli.generation.engine import Engine
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.plan_file import AnyPlan
from dcdm_cli.generation.selection import render_close
from dcdm_cli.generation.shards import Facts, Rendered
from dcdm_cli.generation.starts import Starts
from dcdm_cli.run.progress import Job

__all__ = ["EngineMaker", "Generated", "run_plan"]


class EngineMaker:
    """An engine and a scorer as a `Maker`."""

    def __init__(self, engine: Engine, measure: Measure | None = None) -> None:
        info = engine.info
        self.engine, self._measure, self.batch_size = engine, measure, engine.config.batch_size
        kernels = getattr(engine.denoiser, "kernels", {})
        self.facts = Facts(engine.generator, tuple(info.class_names), info.base, engine.denoiser.name, kernels)

    def render(self, rows: Sequence[PlanRow], job: Job) -> Iterator[Rendered]:
        return render_close(self.engine, rows, job, self._measure)

    def begin_from(self, starts: Starts) -> None:
        self.engine = replace(self.engine, starts=starts)


def run_plan(
    plan: AnyPlan, engine: Engine, folder: Path, job: Job, measure: Measure | None = None, *, format: str = "folder"
) -> Generated:
    """Makes what is missing of `plan` in `folder`, as PNG; the same call again continues or changes nothing.

    measure: scores what was made and, with `attempts`, chooses among draws.
    Raises MismatchError when the folder holds another plan, InterruptedRunError when asked to stop.
    """
    maker = EngineMaker(engine, measure)
    layout = Layout(folder, format, "png", maker.facts.class_names, plan.shards)
    return run_shards(plan, maker, layout, job)
