"""Opening the run's engine and measuring what it makes: shared by calibration, generation and evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.errors import NotFoundError
from dcdm_cli.run import one_off
from dcdm_cli.run.progress import Job
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.devices import Placement, open_pool
from dcdm_cli.stages.jobs import KEPT
from dcdm_cli.stages.label_check import open_check, prepare_check
from dcdm_cli.stages.prompts import own_prompts, prompt_input
from dcdm_cli.stages.reading import readable
from dcdm_cli.stages.starts import open_starts, source_ids

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.verdict import Measure, Verdict
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import PlanInputs, PlanRow
    from dcdm_cli.generation.samples import Watch
    from dcdm_cli.run.session import Session
    from dcdm_cli.run.settings import GenerateConfig
    from dcdm_cli.workers.coordinator import WorkerPool
    from dcdm_cli.workers.messages import Worker


@dataclass(frozen=True)
class Probed:
    """One entry per image. target, requested, realised float32 [N]; label int64 [N]; agrees bool [N]: the scorer still
    gives the image its label; shows bool [N]: the label check sees it, None where none was asked. prompt_source: of the
    plan's rows. The images themselves are not kept: `Watch` sees each batch once."""

    target: np.ndarray
    requested: np.ndarray
    realised: np.ndarray
    label: np.ndarray
    agrees: np.ndarray
    shows: np.ndarray | None = None
    prompt_source: tuple[str | None, ...] = ()


def open_run_engine(session: Session, adapter: Path, job: Job, *, insist: bool = True) -> Engine:
    """The run's export serves the run's own adapter. insist False: a backend asked for need not be there yet."""
    from dcdm_cli.generation.engine import open_engine, sampler_warnings

    config, own = session.config.generate, adapter == session.run.adapter
    if not (own and insist):
        config = config.model_copy(update=_without_export(config))
    for warning in sampler_warnings(config):
        session.console.warn(warning)
    if config.negative_prompt:
        readable(session, [config.negative_prompt], "--negative-prompt")
    # opening networks takes seconds, in which nobody looks for a stop
    job.stop_if_asked(KEPT)
    starts = open_starts(session, adapter, job)  # first: its VAE must go before the networks come
    with one_off.loading():
        engine = open_engine(adapter, config, job.device, export=_sealed_export(session.run) if own else None)
    one_off.opened()
    for warning in engine.base.warnings:
        session.console.warn(warning)
    session.console.note(f"backend: {engine.denoiser.name} ({engine.reason})", once=True)
    return replace(engine, starts=starts)


def _without_export(config: GenerateConfig) -> dict[str, str]:
    """The settings that ask for one, as they are where there may be none."""
    backend = "torch" if config.backend == "torch" else "auto"
    # torch computes nothing in fp8: that is an export's alone
    return {"backend": backend, "precision": "auto" if config.precision == "fp8" else config.precision}


def open_run_pool(
    session: Session, placement: Placement, job: Job, opener: Callable[..., Worker], *, score: bool
) -> WorkerPool:
    """The run's engine, label check, and with `score` its scorer, once per worker. opener: from
    `generation.worker_start`."""
    from dcdm_cli.data.images import decode_options
    from dcdm_cli.generation.engine import sampler_warnings
    from dcdm_cli.generation.worker_start import Parcel, Setup

    run, config = session.run, session.config.generate
    here = job if placement.engine == "local" else replace(job, device="cpu")  # Ray's devices are elsewhere
    # made here, once: workers open what they are named
    checker = prepare_check(session, here)
    for warning in sampler_warnings(config):
        session.console.warn(warning)
    folders = (run.adapter, run.scorer if score and run.scorer.exists() else None, _export_of(run), checker)
    # without a shared disk the files themselves are sent
    packed = [Parcel.of(folder) if folder and placement.deliver else folder for folder in folders]
    adapter, scorer, export, checker = packed
    assert adapter is not None
    setup = Setup(adapter, config, scorer, decode_options(), placement.threads, placement.deliver, export, checker)
    return open_pool(session, partial(opener, setup), placement, job)


def _export_of(run: RunFolder) -> Path | None:
    return _sealed_export(run) if run.export.exists() else None


def _sealed_export(run: RunFolder) -> Path:
    """Raises MismatchError for a signature, which has the hashes of all the rest, that is not as exporting left it."""
    run.sealed((run.export / "signature.json",))
    return run.export


def plan_inputs(session: Session, *, calibrated: bool = True) -> PlanInputs:
    """Classes, captions, real difficulties and, if asked for, the calibration that fits the sampler settings. Raises
    NotFoundError for images that have no captions any more."""
    import numpy as np

    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.generation.plan import PlanInputs

    config = session.config.generate
    train = read_manifest(session.run.samples).split("train")
    allowed = _class_captions(session, train)
    real = np.asarray(train.column("difficulty"), np.float32)
    calibration = usable_calibration(session) if calibrated else None
    own = own_prompts(session, train)
    sources = source_ids(session, train)
    return PlanInputs(train.class_names, allowed, real, config.difficulty_cap, calibration, sources, own)


def _class_captions(session: Session, train: Manifest) -> list[list[str]]:
    """Those that images of each class may be asked for by."""
    if session.config.generate.captions == "class":
        from dcdm_cli.captioning.templates import caption_from_template

        template = session.config.caption.template
        return [[caption_from_template(template, name)] for name in train.class_names]
    found: list[list[str]] = [[] for _ in train.class_names]
    for label, caption in zip(train.column("label"), train.column("caption"), strict=True):
        if caption is None:
            raise NotFoundError(
                "the training images have no captions: they were scored again since",
                f"dcdm caption --run {session.run.path}",
                file=session.run.samples,
            )
        found[label].append(caption)
    return found


def usable_calibration(session: Session):
    """The stored calibration, if wanted and measured with these sampler settings; otherwise None, and a warning."""
    from dcdm_cli.difficulty.calibration import load_calibration
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import CALIBRATION_FILE, ENCODER_FILE

    config = session.config.generate
    again = f"dcdm {'distill' if session.run.distilled else 'finetune'}{run_words(session.run)}"
    if not config.calibrated:
        return None
    calibration = load_calibration(session.run.adapter / CALIBRATION_FILE)
    if calibration is None:
        if (session.run.adapter / ENCODER_FILE).is_file():  # without one there is nobody to ask for a difficulty
            session.console.warn(f"no calibration: difficulties are requested as they are ({again} makes one)")
        return None
    # None is a setting that is off: calibrations from before there was one still hold
    now, then = sampler_settings(config), {k: v for k, v in calibration.settings.items() if v is not None}
    if now != then:
        changed = [k for k in {**now, **then} if now.get(k) != then.get(k)]
        session.console.warn(
            f"the calibration was measured with other sampler settings ({', '.join(changed)}) and is not used: "
            f"calibrate again with them: {again} {_as_flags(config, changed)}"
        )
        return None
    _say_prompts_are_new(session, again)
    # measured on single draws; what is reachable counts those that are chosen among
    return replace(calibration, attempts=config.attempts)


def _say_prompts_are_new(session: Session, again: str) -> None:
    """A calibration holds for the prompts that it was measured with."""
    asked, record = prompt_input(session).get("prompts"), session.run.record("calibrate")
    if asked is None or record is None or record.inputs.get("prompts") == asked:
        return
    file = shlex.quote(str(session.config.generate.prompts))
    session.console.note(
        "the calibration knows none of these prompts: what they do to difficulty and to labels is measured by "
        f"{again} --set generate.prompts={file} (it calibrates again and fine-tunes nothing)",
        once=True,
    )


def _as_flags(config: GenerateConfig, names: Sequence[str]) -> str:
    values = {name: getattr(config, name) for name in names}
    return " ".join(shlex.quote(f"--set=generate.{k}={'none' if v is None else v}") for k, v in values.items())


def make_measure(session: Session, job: Job, *, score: bool = True, check: bool = True) -> Measure | None:
    """Finished images by the run's scorer, where it has one and `score`, and by its label check, where one is set and
    `check`; None where nobody looks. To be called before models are opened: a check that does not fit is said here."""
    from dcdm_cli.difficulty.verdict import with_check

    checker = open_check(session, job) if check else None
    if not (score and session.run.scorer.exists()):
        return with_check(None, checker)
    from dcdm_cli.difficulty.scorer import Scorer

    return with_check(Scorer.load(session.run.scorer, job.device).verdicts, checker)


def probe(
    session: Session,
    engine: Engine,
    targets: Sequence[float],
    per_target: int,
    job: Job,
    *,
    seed: int,
    calibrated: bool,
    watch: Watch | None = None,
) -> Probed:
    """Generates `per_target` images at each difficulty and scores them, one batch in memory at a time. Labels are
    checked with the calibration, as `dcdm generate` does; without it, first draws are measured, and only the scorer's
    view of them counts."""
    from dcdm_cli.generation.plan import grid_plan

    inputs = plan_inputs(session, calibrated=calibrated)
    plan = grid_plan(inputs, targets, per_target, seed, engine.generator)
    rows = plan.rows()
    return probe_rows(session, engine if calibrated else first_draws(engine), rows, job, watch, check=calibrated)


def first_draws(engine: Engine) -> Engine:
    """The same engine without a choice among draws: what the model itself does."""
    return replace(engine, config=engine.config.model_copy(update={"attempts": 1}))


def probe_with_pool(
    session: Session,
    placement: Placement,
    targets: Sequence[float],
    per_target: int,
    job: Job,
    *,
    seed: int,
    watch: Watch,
) -> Probed:
    """`probe` with the run's calibration, by a worker pool."""
    from dcdm_cli.generation.plan import grid_plan
    from dcdm_cli.generation.samples import sample_rows
    from dcdm_cli.generation.worker_start import open_sample_worker

    with open_run_pool(session, placement, job, open_sample_worker, score=True) as pool:
        facts, batch = pool.first_hello()
        session.console.note(f"backend: {facts.backend}")
        rows = grid_plan(plan_inputs(session), targets, per_target, seed, facts.generator).rows()
        starts = open_starts(session, session.run.adapter, replace(job, device="cpu"))  # the devices are the workers'
        return _probed(rows, sample_rows(rows, pool, batch, watch, starts))


def probe_rows(
    session: Session,
    engine: Engine,
    rows: Sequence[PlanRow],
    job: Job,
    watch: Watch | None = None,
    *,
    check: bool = True,
) -> Probed:
    """The same for any plan rows."""
    from dcdm_cli.difficulty.verdict import joined
    from dcdm_cli.generation.render import render_close

    measure = make_measure(session, job, check=check)
    verdicts = []
    for batch in render_close(engine, rows, job, measure):
        assert batch.verdict is not None, "callers check that the run has a scorer"
        verdicts.append(batch.verdict)
        if watch is not None:
            watch(batch.rows, batch.images, batch.verdict.difficulty)
        job.stop_if_asked("these images are made anew next time")
    return _probed(rows, joined(verdicts))


def _probed(rows: Sequence[PlanRow], verdict: Verdict) -> Probed:
    import numpy as np

    label = np.array([row.label for row in rows])
    return Probed(
        target=np.array([row.target_difficulty for row in rows], np.float32),
        requested=np.array([row.requested_difficulty for row in rows], np.float32),
        realised=verdict.difficulty,
        label=label,
        agrees=verdict.predicted == label,
        shows=verdict.shows,
        prompt_source=tuple(row.prompt_source for row in rows),
    )
