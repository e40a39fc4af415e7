"""Generators that differ from the run's own: each is a small run folder of its own, fine-tuned and calibrated once.

`evaluation/adapters/<name>-<hash>/` has its own adapter and records; everything else is the run's. So calibration and
generation work on it as they do on a run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dcdm_cli.errors import NumericalError, UsageError
from dcdm_cli.evaluation.experiments import AdapterSpec, ArmSpec
from dcdm_cli.files import hash_json, safe_name
from dcdm_cli.model.base_files import base_files
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Session, with_chosen_strength, with_settings
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.adapter import copy_adapter, measured_views, own_difficulty
from dcdm_cli.stages.calibrate import run_calibrate
from dcdm_cli.stages.caption import caption_input
from dcdm_cli.stages.export import run_export
from dcdm_cli.stages.foretold import foretelling
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

    def with_distilled(self, distilled: bool) -> RunFolder:
        if distilled:
            raise UsageError(
                "an experiment's own generators are guided by calls: only the run's adapter is distilled",
                'leave generate.guidance = "distilled" out of the experiment',
            )
        return self

    def record(self, stage: str) -> StageRecord | None:
        return self.parent.record(stage) if stage in ("score", "caption") else super().record(stage)


def variant_session(session: Session, name: str, spec: AdapterSpec) -> Session:
    """Where the adapter is, or will be, with its settings. The run's own adapter needs no folder of its own."""
    if not spec.retrains and not spec.generate:
        return with_settings(session)
    by_calls = {"guidance": "calls", **spec.generate}  # the run's adapter alone is distilled
    changed_session = with_settings(session, finetune=spec.finetune, generate=by_calls)
    config = changed_session.config
    made_from = [
        spec.scores,
        fingerprint(config.finetune) if spec.retrains else session.run.require("finetune").id,
        [session.run.require("score").id, *caption_input(session.run).values()],
        spec.generate,
        config.seed,
    ]
    # the name is from an experiment's file, and must not lead out of the folder
    folder = VariantFolder(changed_session.run, f"{safe_name(name, 'adapter')}-{hash_json(made_from)[:8]}")
    return replace(changed_session, run=folder)


def arm_session(session: Session, arm: ArmSpec, spec: AdapterSpec) -> Session:
    """`variant_session` with the arm's own target distribution, cap, calibration and number of draws."""
    wanted = {"difficulty": arm.difficulty, "difficulty_cap": arm.cap, "calibrated": arm.calibrated}
    wanted["attempts"] = arm.attempts
    own = {key: value for key, value in wanted.items() if value is not None}
    return with_settings(variant_session(session, arm.adapter, spec), generate=own)


def as_chosen(session: Session, spec: AdapterSpec) -> Session:
    """With the scales that fine-tuning a variant chose, if it did, unless the experiment says others."""
    if not isinstance(session.run, VariantFolder):
        return session
    return with_settings(with_chosen_strength(session), generate=spec.generate)


def prepare_variant(session: Session, spec: AdapterSpec, job: Job) -> Session:
    """Fine-tunes (or copies), exports where the run is exported, and calibrates what `variant_session` gave; finished
    work is found and kept, and what has changed since is made again. Returns the session to generate with: with the
    scales that fine-tuning chose, if it did."""
    run = session.run
    if not isinstance(run, VariantFolder):
        return session
    run.create()
    if spec.retrains:
        _fine_tune(run, spec, session, job)
    else:
        _copy_adapter(run)
    session = as_chosen(session, spec)
    if run.parent.record("export"):  # times of arms are compared: the others get what the run's own adapter has
        run_export(session)
    # a record of its own: that there is nothing to calibrate is an outcome too, and not tried each time
    record, _ = run.run(_calibration_stage(session), lambda: _calibrated(session))
    if record.results["reason"]:
        session.console.note(f"{run.path.name} is used without calibration: {record.results['reason']}")
    return session


def ready_for(arm: ArmSpec, session: Session, spec: AdapterSpec, job: Job) -> Session:
    """The arm's session on an adapter that is finished, with the scales that fine-tuning chose. What is the arm's alone
    (draws, target) has no part in training: arms of one adapter find it trained."""
    prepare_variant(variant_session(session, arm.adapter, spec), spec, job)
    return as_chosen(arm_session(session, arm, spec), spec)


def _fine_tune(run: VariantFolder, spec: AdapterSpec, session: Session, job: Job) -> None:
    from dcdm_cli.model.adapter import adapter_hash

    config = session.config.finetune
    inputs = {"score": run.require("score").id, **caption_input(run)}
    settings = {**fingerprint(config), "scores": spec.scores, "run_seed": session.config.seed}
    if config.strength == "auto":
        settings |= strength_settings(session)

    def work() -> Outcome:
        session.console.note(f"{run.path.name}: a generator to compare with is fine-tuned, as long as the run's own")
        told = foretelling(session, job, run.path.name)
        results = fine_tune(session, config, run.adapter, told, _difficulty_of(spec.scores))
        return Outcome([run.adapter], adapter_hash(run.adapter), results, job.device)

    base = base_files(config.base, config.base_config)
    run.run(Stage("finetune", settings, inputs, others(config), base=base), work)


def _difficulty_of(kind: str) -> DifficultyOf | None:
    """What stands for difficulty in training; None = the run's own scores."""
    if kind == "crossfit":
        return None

    def difficulty(views: Views, rows: Manifest, config: FinetuneConfig, session: Session, job: Job) -> np.ndarray:
        import numpy as np

        from dcdm_cli.evaluation.other_scores import in_sample, rescaled, shuffled

        labels, classes = rows.column("label").astype(np.int64), len(rows.class_names)
        if kind == "shuffled":
            own = own_difficulty(views, rows, config, session, job)
            return shuffled(own, labels, session.config.seed)
        if kind == "in-sample":
            return in_sample((rows.paths(), labels), classes, views, session.config.score, job)
        return rescaled(measured_views(views, rows, session, job).probs, views.repeat(labels), kind)

    return difficulty


def _calibration_stage(session: Session) -> Stage:
    from dcdm_cli.generation.engine import sampler_settings

    settings = {**fingerprint(session.config.calibrate), **sampler_settings(session.config.generate)}
    return Stage("calibration", settings, {"finetune": session.run.require("finetune").id})


def _calibrated(session: Session) -> Outcome:
    """Shuffled scores teach nothing, so that there is nothing to calibrate: an outcome, not a failure."""
    if session.config.generate.difficulty_guidance == 0:
        return Outcome([], "", {"reason": "difficulty is switched off (difficulty_guidance = 0)"}, "cpu")
    try:
        record = run_calibrate(session)
    except NumericalError as error:
        return Outcome([], "", {"reason": error.message}, "cpu")
    if record is None:
        return Outcome([], "", {"reason": "there is nothing to calibrate"}, "cpu")
    return Outcome([session.run.calibration], "", {"reason": ""}, "cpu")


def _copy_adapter(run: VariantFolder) -> None:
    """The run's weights under other sampler settings, which need a calibration of their own."""
    source = run.parent.require("finetune")

    def work() -> Outcome:
        copy_adapter(run.parent.adapter, run.adapter)
        return Outcome([run.adapter], source.fingerprint)

    # another adapter of the run gives the folder another name (`variant_session`), so settings and inputs are enough
    run.run(Stage("finetune", source.config, source.inputs), work)
