"""Generators that differ from the run's own: each is a small run folder of its own, fine-tuned and calibrated once.

`evaluation/adapters/<name>-<hash>/` has its own adapter and records; everything else is the run's. So calibration and
generation work on it as they do on a run.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from dcdm_cli.errors import NumericalError
from dcdm_cli.evaluation.experiments import AdapterSpec, ArmSpec
from dcdm_cli.files import atomic_folder, hash_json, safe_name
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Context, with_chosen_strength, with_settings
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.adapter import measured_views, own_difficulty
from dcdm_cli.stages.calibrate import run_calibrate
from dcdm_cli.stages.caption import caption_input
from dcdm_cli.stages.export import run_export
from dcdm_cli.stages.strength import fine_tune, strength_settings

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.run.settings import FinetuneConfig
    from dcdm_cli.stages.adapter import DifficultyOf
    from dcdm_cli.training.views import Views


class VariantFolder(RunFolder):
    """A run inside a run: images, scores and captions are those of `parent`, whose scorer and caches it shares."""

    def __init__(self, parent: RunFolder, name: str) -> None:
        super().__init__(parent.evaluation / "adapters" / name)
        self.parent = parent

    samples = property(lambda self: self.parent.samples)
    scorer = property(lambda self: self.parent.scorer)
    checker = property(lambda self: self.parent.checker)
    cache = property(lambda self: self.parent.cache)

    def record(self, stage: str) -> StageRecord | None:
        return self.parent.record(stage) if stage in ("score", "caption") else super().record(stage)


def variant_context(context: Context, name: str, spec: AdapterSpec) -> Context:
    """Where the adapter is, or will be, with its settings. The run's own adapter needs no folder of its own."""
    changed_context = with_settings(context, finetune=spec.finetune, generate=spec.generate)
    if not spec.retrains and not spec.generate:
        return changed_context
    config = changed_context.config
    made_from = [
        spec.scores,
        fingerprint(config.finetune) if spec.retrains else context.run.require("finetune").id,
        [context.run.require("score").id, *caption_input(context.run).values()],
        spec.generate,
        config.seed,
    ]
    folder = VariantFolder(context.run, f"{safe_name(name, 'adapter')}-{hash_json(made_from)[:8]}")
    return replace(changed_context, run=folder)


def arm_context(context: Context, arm: ArmSpec, spec: AdapterSpec) -> Context:
    """`variant_context` with the arm's own target distribution, cap, calibration and number of draws."""
    wanted = {"difficulty": arm.difficulty, "difficulty_cap": arm.cap, "calibrated": arm.calibrated}
    wanted["attempts"] = arm.attempts
    own = {key: value for key, value in wanted.items() if value is not None}
    return with_settings(variant_context(context, arm.adapter, spec), generate=own)


def prepare_variant(context: Context, spec: AdapterSpec, job: Job) -> Context:
    """Fine-tunes (or copies), exports where the run is exported, and calibrates what `variant_context` gave; finished
    work is found and kept. Returns the context to generate with: with the scales that fine-tuning chose, if it did."""
    run = context.run
    if not isinstance(run, VariantFolder):
        return context
    run.create()
    if spec.retrains:
        _fine_tune(run, spec, context, job)
    else:
        _copy_adapter(run)
    context = with_settings(with_chosen_strength(context), generate=spec.generate)
    if run.parent.record("export"):  # times of arms are compared: the others get what the run's own adapter has
        run_export(context)
    record, _ = run.run(_calibration_stage(context), lambda: _calibrated(context))
    if record.results["reason"]:
        context.console.note(f"{run.path.name} is used without calibration: {record.results['reason']}")
    return context


def _fine_tune(run: VariantFolder, spec: AdapterSpec, context: Context, job: Job) -> None:
    from dcdm_cli.model.adapter import adapter_hash

    config = context.config.finetune
    inputs = {"score": run.require("score").id, **caption_input(run)}
    settings = {**fingerprint(config), "scores": spec.scores, "run_seed": context.config.seed}
    if config.strength == "auto":
        settings |= strength_settings(context)

    def work() -> Outcome:
        results = fine_tune(context, config, run.adapter, job, _difficulty_of(spec.scores))
        return Outcome([run.adapter], adapter_hash(run.adapter), results, job.device)

    run.run(Stage("finetune", settings, inputs, others(config)), work)


def _difficulty_of(kind: str) -> DifficultyOf | None:
    """What stands for difficulty in training; None = the run's own scores."""
    if kind == "crossfit":
        return None

    def difficulty(views: Views, rows: Manifest, config: FinetuneConfig, context: Context, job: Job) -> np.ndarray:
        import numpy as np

        from dcdm_cli.evaluation.other_scores import in_sample, rescaled, shuffled

        labels, classes = rows.column("label").astype(np.int64), len(rows.class_names)
        if kind == "shuffled":
            own = own_difficulty(views, rows, config, context, job)
            return shuffled(own, labels, context.config.seed)
        if kind == "in-sample":
            return in_sample((rows.paths(), labels), classes, views, context.config.score, job)
        return rescaled(measured_views(views, rows, context, job).probs, views.repeat(labels), kind)

    return difficulty


def _calibration_stage(context: Context) -> Stage:
    from dcdm_cli.generation.engine import sampler_settings

    settings = {**fingerprint(context.config.calibrate), **sampler_settings(context.config.generate)}
    return Stage("calibration", settings, {"finetune": context.run.require("finetune").id})


def _calibrated(context: Context) -> Outcome:
    """Shuffled scores teach nothing, so that there is nothing to calibrate: an outcome, not a failure."""
    if context.config.generate.difficulty_guidance == 0:
        return Outcome([], "", {"reason": "difficulty is switched off (difficulty_guidance = 0)"}, "cpu")
    try:
        record = run_calibrate(context)
    except NumericalError as error:
        return Outcome([], "", {"reason": error.message}, "cpu")
    return Outcome([], "", {"reason": "" if record else "there is nothing to calibrate"}, "cpu")


def _copy_adapter(run: VariantFolder) -> None:
    """The run's weights under other sampler settings, which need a calibration of their own."""
    from dcdm_cli.model.adapter import CALIBRATION_FILE

    if not run.adapter.is_dir():
        with atomic_folder(run.adapter) as part:
            for file in run.parent.adapter.iterdir():
                if file.name != CALIBRATION_FILE:
                    shutil.copy(file, part / file.name)
    source = run.parent.require("finetune")
    run.run(Stage("finetune", source.config, source.inputs), lambda: Outcome([run.adapter], source.fingerprint))
