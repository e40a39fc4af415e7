"""Opening the run's engine and measuring what it makes: shared by calibration, generation and evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.demo.base import resolve_base
from dcdm_cli.job import Job

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.commands.options import Context
    from dcdm_cli.config import GenerateConfig
    from dcdm_cli.generation.bulk import Measure
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import PlanInputs


@dataclass(frozen=True)
class Probed:
    """One entry per image. target, requested, realised float32 [N]; label int64 [N]; agrees bool [N]: the scorer still
    gives the image its label; images uint8 [N, H, W, 3]."""

    target: np.ndarray
    requested: np.ndarray
    realised: np.ndarray
    label: np.ndarray
    agrees: np.ndarray
    images: np.ndarray


def open_run_engine(context: Context, adapter: Path, job: Job) -> Engine:
    from dcdm_cli.generation.engine import open_engine
    from dcdm_cli.model.adapter import read_adapter

    base = resolve_base(read_adapter(adapter).base)  # the packaged one lies elsewhere on another machine
    engine = open_engine(adapter, context.config.generate, job.device, base=base)
    context.console.note(f"backend: {engine.denoiser.name} ({engine.reason})")
    return engine


def plan_inputs(context: Context, *, calibrated: bool = True) -> PlanInputs:
    """Classes, captions, real difficulties and, if asked for, the calibration that fits the sampler settings."""
    import numpy as np

    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.generation.plan import PlanInputs

    config = context.config.generate
    train = read_manifest(context.run.samples).split("train")
    labels, captions = train.column("label"), train.column("caption")
    allowed: list[list[str]] = [[] for _ in train.class_names]
    for label, caption in zip(labels, captions, strict=True):
        allowed[label].append(caption)
    if config.captions == "class":
        from dcdm_cli.captioning.templates import caption_from_template

        template = context.config.caption.template
        allowed = [[caption_from_template(template, name)] for name in train.class_names]
    real = np.asarray(train.column("difficulty"), np.float32)
    calibration = usable_calibration(context) if calibrated else None
    return PlanInputs(train.class_names, allowed, real, config.difficulty_cap, calibration)


def usable_calibration(context: Context):
    """The stored calibration, if wanted and measured with these sampler settings; otherwise None, and a warning."""
    from dcdm_cli.difficulty.calibration import load_calibration
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import CALIBRATION_FILE

    config = context.config.generate
    if not config.calibrated:
        return None
    calibration = load_calibration(context.run.adapter / CALIBRATION_FILE)
    if calibration is None:
        context.console.warn("no calibration: difficulties are requested as they are (dcdm finetune makes one)")
        return None
    if calibration.settings != sampler_settings(config):
        changed = [k for k, v in sampler_settings(config).items() if calibration.settings.get(k) != v]
        context.console.warn(
            f"the calibration was measured with other sampler settings ({', '.join(changed)}) and is not used: "
            f"calibrate again with them: dcdm finetune {_as_flags(config, changed)}"
        )
        return None
    return replace(calibration, attempts=config.attempts)


def _as_flags(config: GenerateConfig, names: Sequence[str]) -> str:
    values = {name: getattr(config, name) for name in names}
    return " ".join(shlex.quote(f"--set=generate.{k}={'none' if v is None else v}") for k, v in values.items())


def make_measure(context: Context, job: Job) -> Measure | None:
    """Scores finished images with the run's scorer; None when the run has no classifier of its own."""
    if not context.run.scorer.exists():
        return None
    from dcdm_cli.difficulty.scorer import Scorer

    scorer = Scorer.load(context.run.scorer, job.device)

    def measure(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        measured = scorer.measure(images, labels)
        return measured.difficulty, measured.predicted

    return measure


def probe(
    context: Context,
    engine: Engine,
    targets: Sequence[float],
    per_target: int,
    job: Job,
    *,
    seed: int,
    calibrated: bool,
) -> Probed:
    """Generates `per_target` images at each difficulty, in memory, and scores them."""
    import numpy as np

    from dcdm_cli.generation.plan import grid_plan
    from dcdm_cli.generation.selection import render_close

    inputs = plan_inputs(context, calibrated=calibrated)
    plan = grid_plan(inputs, targets, per_target, seed, engine.generator)
    measure = make_measure(context, job)
    assert measure is not None, "callers check that the run has a scorer"
    images, realised, predicted = [], [], []
    for rows, batch in render_close(engine, plan.rows(), job, measure if calibrated else None):
        s, guess = measure(batch, np.array([row.label for row in rows]))
        job.stop_if_asked("these probe images are made again")
        images.append(batch)
        realised.append(s)
        predicted.append(guess)
    label = np.array(plan.table["label"])
    return Probed(
        target=np.array(plan.table["target_difficulty"]),
        requested=np.array(plan.table["requested_difficulty"]),
        realised=np.concatenate(realised),
        label=label,
        agrees=np.concatenate(predicted) == label,
        images=np.concatenate(images),
    )
