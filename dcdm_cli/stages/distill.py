"""Distils guidance: a second adapter whose one network call gives what the guided calls of the first give.

Meng et al. 2022, "On distillation of guided diffusion models", arXiv 2210.03142, stage one, for fixed scales; not from
the DCDM paper.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import UsageError
from dcdm_cli.run.keeping import refuse_replacing
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Session, by_calls
from dcdm_cli.run.settings import DistillConfig, FinetuneConfig
from dcdm_cli.run.store import DISTILLED, Outcome, Stage, StageRecord
from dcdm_cli.stages.adapter import TrainingRows, train_adapter
from dcdm_cli.stages.devices import settle_training
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.watching import draw_losses, step_log
from dcdm_cli.workers.ranks import Ranks

if TYPE_CHECKING:
    from dcdm_cli.training.loop import Teacher

FIGURE = "distill-loss.png"


def run_distill(session: Session) -> StageRecord:
    """Distils the run's adapter at the scales that the settings generate with, unless nothing changed."""
    if Ranks.of_environment().world > 1:
        raise UsageError("distilling is done by one process", "start dcdm distill by itself, without a launcher")
    session = settle_training(by_calls(session))
    run = session.run
    run.create(after="finetune")
    with run.lock("dcdm distill"):
        stage = distill_stage(session)
        if not session.force:
            refuse_replacing(run, stage, "distilling with other settings")
        record, done = run.run(stage, lambda: _distill(session), force=session.force)
        shutil.rmtree(run.checkpoints / DISTILLED, ignore_errors=True)  # only now: as fine-tuning's
    if not done:
        session.console.note("distill: nothing changed, skipped (--force runs it again)")
    return record


def distill_stage(session: Session) -> Stage:
    """Of a session whose precision is settled."""
    from dcdm_cli.generation.guidance import stands_for

    # what is read is the teacher's: the fine-tuned adapter, whichever one generates
    run, config = session.run.with_distilled(False), session.config
    settings = {**fingerprint(config.distill), "stands_for": stands_for(config.generate), "run_seed": config.seed}
    settings["precision"] = config.finetune.precision
    # no scorer: images as they are have their scores in the table
    reads = (run.samples, *run.weights, *run.base_files())
    return Stage("distill", settings, {"finetune": run.require("finetune").id}, others(config.distill), reads)


def student_settings(finetune: FinetuneConfig, distill: DistillConfig) -> FinetuneConfig:
    """The trainer's settings. Every step teaches the guided prediction, of images as they are, without weights."""
    # dropout teaches the calls that guidance combines: one call that stands for all of them has none to learn
    off = {"text_dropout": 0.0, "difficulty_dropout": 0.0, "difficulty_balance": 0.0, "snr_gamma": None}
    off |= {"views": 1, "hflip": False, "sample_every": 0}
    return finetune.model_copy(update={**off, **distill.model_dump()})


def _distill(session: Session) -> Outcome:
    from dcdm_cli.model.adapter import adapter_hash
    from dcdm_cli.run.one_off import loading

    run, job = session.run, open_job(session)
    folder = run.with_distilled(True).adapter
    folder.parent.mkdir(exist_ok=True)
    config = student_settings(session.config.finetune, session.config.distill)
    with loading():
        lesson = _lesson(session, config, job)
    with step_log(session, job, "distill") as logged:
        results = train_adapter(session, config, folder, logged, lesson=lesson)
    figure = draw_losses(run.figures / FIGURE, results)
    results |= _facts(session)
    return Outcome([folder, figure], adapter_hash(folder), results, job.device, listed=[run.cache])


def _facts(session: Session) -> dict[str, Any]:
    from dcdm_cli.generation.guidance import stands_for

    generate = session.config.generate
    return {"stands_for": stands_for(generate), "calls": len(_guidance(session).weights())}


def _guidance(session: Session) -> Any:
    """By calls, as it is taught. Raises UsageError for scales that make one call anyway, and for a span."""
    from dcdm_cli.generation.guidance import check_one_scale, taught_guidance

    config = session.config
    check_one_scale(config.generate)
    guidance = taught_guidance(config.generate, plain=config.finetune.conditioning == "none")
    if len(guidance.weights()) == 1:
        raise UsageError(
            f"text_guidance = {guidance.text:g} and difficulty_guidance = {guidance.difficulty:g} make one network "
            "call already: there is nothing to distil",
            "generate as it is, or give scales above 1",
        )
    return guidance


def _lesson(session: Session, config: FinetuneConfig, job: Job) -> TrainingRows:
    """The fine-tuned adapter goes on learning, from what it predicts itself when it is guided."""
    from dcdm_cli.gate import typed
    from dcdm_cli.generation.guidance import stands_for
    from dcdm_cli.model.adapter import Distilled, adapter_hash
    from dcdm_cli.training.loop import EarlierAdapter

    adapter, generate = session.run.adapter, session.config.generate
    made = typed(Distilled, stands_for(generate) | {"teacher": adapter_hash(adapter)})
    start = EarlierAdapter(adapter, generate.lora_scale, train_lora=True, with_encoder=True)
    teacher = _teacher(session, config.precision, made, job)
    return TrainingRows(start=start, name=DISTILLED, teacher=teacher, distilled=made)


def _teacher(session: Session, precision: str, made: Any, job: Job) -> Teacher:
    from dataclasses import asdict

    from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
    from dcdm_cli.files import hash_json
    from dcdm_cli.generation.teacher import GuidedTeacher, calls_of
    from dcdm_cli.model.base import encode_text
    from dcdm_cli.model.fused import load_fused
    from dcdm_cli.training.loop import Teacher

    generate, guidance = session.config.generate, _guidance(session)
    fused = load_fused(session.run.adapter, precision=precision, lora_scale=generate.lora_scale, device=job.device)
    null_text = encode_text(fused.base, [generate.negative_prompt]).float()
    denoiser = TorchDenoiser(fused.network, job.device, TorchOptions(calls_of(guidance), cuda_graphs=False))
    timesteps = fused.base.scheduler_config["num_train_timesteps"]
    return Teacher(GuidedTeacher(denoiser, guidance, timesteps, null_text), hash_json(asdict(made)))
