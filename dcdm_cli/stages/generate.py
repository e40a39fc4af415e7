"""Generates images: plan first, then shards; the same call again continues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import UsageError
from dcdm_cli.files import remove
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import ALL_SETS, Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.devices import Placement, settle_generation, settle_placement
from dcdm_cli.stages.evaluation_data import stale_adapter
from dcdm_cli.stages.given import image_input, table_input
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.label_check import check_files, generator_files
from dcdm_cli.stages.parts import join_parts
from dcdm_cli.stages.plan import (
    check_plan,
    describe_model,
    draw_plan,
    plan_layout,
    price_file,
    refuse_planning_flags,
    with_precision_of,
)
from dcdm_cli.stages.probe import make_measure, open_run_engine, open_run_pool
from dcdm_cli.stages.starts import open_starts
from dcdm_export.places import set_aside

if TYPE_CHECKING:
    from dcdm_cli.generation.plan_file import AnyPlan, PlanFile
    from dcdm_cli.generation.run import Generated
    from dcdm_cli.generation.shards import Facts, Rendered

PROJECTIONS = ("samples.parquet", "train/metadata.jsonl", "rejected.jsonl")  # of the shards' rows, for other tools


def run_generate(
    session: Session, plan_file: Path | None = None, *, verify: bool = False, join: bool = False
) -> StageRecord:
    """Executes a plan file, or the plan that the settings give, unless nothing changed. join: makes nothing, joins what
    parts of the plan file have made."""
    run, plan = session.run, None
    if run.images_name == ALL_SETS:
        raise UsageError(f"--name {ALL_SETS} means all sets where they are compared", "choose another name")
    if join and (plan_file is None or session.force):
        said = "joining needs the plan whose parts were made, and replaces nothing"
        raise UsageError(said, "dcdm generate PLAN --part join")
    if plan_file is not None:
        # before anything is loaded: one that was edited is refused at once
        plan = opened_plan(session, plan_file)
        session = with_precision_of(session, plan)
    run.create(after="finetune")
    session = settle_generation(session, "generate")
    with run.lock("dcdm generate" + (f" --name {run.images_name}" if run.images_name else "")):
        for warning in stale_adapter(run):
            session.console.warn(warning)
        stage = generate_stage(session, plan)
        # hashes are compared by the work itself: a fresh stage would be passed over
        force = session.force or verify
        record, done = run.run(
            stage, lambda: _make_images(session, plan, verify, join), force=force, intact=lambda: _is_intact(session)
        )
    if not done:
        session.console.note("generate: nothing changed, skipped (--force runs it again)")
    return record


def opened_plan(session: Session, plan_file: Path) -> PlanFile:
    """Read and checked as a whole. Raises UsageError for settings that cannot change it any more."""
    from dcdm_cli.generation.plan_file import PlanFile

    refuse_planning_flags(session)
    plan = PlanFile(plan_file)
    plan.verify()
    return plan


def generate_stage(session: Session, plan: AnyPlan | None = None) -> Stage:
    """Of a session whose precision is settled."""
    run, config = session.run, session.config.generate
    calibration = run.record("calibrate")
    inputs = {**run.adapter_ids(), "calibrate": calibration.id if calibration else ""}
    inputs |= {name: record.id for name in ("score", "caption") if (record := run.record(name))}
    # a finished plan has used its tables up
    inputs |= image_input(session) | (table_input(session) if plan is None else {"plan": plan.hash})
    settings = {**fingerprint(config), "run_seed": session.config.seed}
    return Stage("generate", settings, inputs, others(config), generator_files(session))


def sample_images(session: Session) -> Iterator[Rendered]:
    """The images that the settings give, measured where there is a scorer. Writes nothing."""
    from dcdm_cli.generation.render import render_close

    session.run.require("finetune")
    # nothing is recorded, and so no `RunFolder.run` looks at the seals
    session.run.sealed(generator_files(session))
    session, job = settle_generation(session, "generate"), open_job(session)
    measure = make_measure(session, job, score=session.config.generate.score)
    engine = open_run_engine(session, session.run.adapter, job)
    plan = draw_plan(session, session.config.generate, engine)
    warn_unreachable(session, plan)
    yield from render_close(engine, plan.rows(), job, measure)


def _make_images(session: Session, plan: AnyPlan | None, verify: bool, join: bool) -> Outcome:
    from dcdm_cli.generation.ledger import refuse_other_plan
    from dcdm_cli.generation.targets import parse_target

    config, run = session.config.generate, session.run
    parse_target(config.difficulty)  # a slip of the pen must not wait for the models to load
    if plan is not None:
        check_plan(session, plan)
        # before a model is loaded
        if not session.force:
            refuse_other_plan(plan, run.generated)
    for name in drop_damaged(run):
        session.console.note(f"{name} is not as it was: it is written again")
    parts: dict[str, Any] = {}
    if join and plan is not None:
        generated, backend, parts = join_parts(session, plan, verify)
        kernels, device = {}, "parts"
    else:
        placement = settle_placement(session)
        run_it = _with_pool if placement else _in_this_process
        plan, generated, facts, device = run_it(session, plan, placement, verify)
        backend, kernels = facts.backend, facts.kernels
    _drop_old(run.generated)  # only now: the new images are complete
    results = {
        "images": generated.images,
        "made_now": generated.made,
        "failed": generated.failed,
        "unreachable_targets": plan.unreachable,
        "plan": plan.hash,
        "shards": plan.shards,
        "format": config.format,
        "backend": backend,
        "kernels": kernels,
        **_difficulty_summary(generated),
        **_prediction(plan),
        **({"parts": parts} if parts else {}),
    }
    folder = run.generated
    also = [*(folder / name for name in PROJECTIONS), folder / "plan.parquet", *check_files(session)]
    listed = [folder / "shards", folder / "train"]
    return Outcome([folder / "samples.parquet"], plan.hash, results, device, also, listed)


def _in_this_process(
    session: Session, plan: AnyPlan | None, placement: Placement, verify: bool
) -> tuple[AnyPlan, Generated, Facts, str]:
    from dcdm_cli.generation.render import EngineMaker
    from dcdm_cli.generation.run import run_shards

    job = open_job(session)
    measure = make_measure(session, job, score=session.config.generate.score)
    engine = open_run_engine(session, session.run.adapter, job)
    plan = plan or draw_plan(session, session.config.generate, engine, describe_model(session))
    _start(session, plan)
    maker = EngineMaker(engine, measure)
    generated = run_shards(plan, maker, plan_layout(session, plan), job, verify=verify)
    return plan, generated, maker.facts, job.device


def _with_pool(
    session: Session, plan: AnyPlan | None, placement: Placement, verify: bool
) -> tuple[AnyPlan, Generated, Facts, str]:
    from dcdm_cli.generation.worker_start import open_shard_worker
    from dcdm_cli.generation.workers import run_pool

    job = open_job(session, placement.devices[0], here=False)
    starts = open_starts(session, session.run.adapter, replace(job, device="cpu"))  # the devices are the workers'
    with open_run_pool(session, placement, job, open_shard_worker, score=session.config.generate.score) as pool:
        # the generator, for which the plan is drawn, is known to workers alone: no network is opened here
        facts, _ = pool.first_hello()
        session.console.note(f"backend: {facts.backend}")
        plan = plan or draw_plan(session, session.config.generate, facts, describe_model(session))
        _start(session, plan)
        if plan.shards < len(placement.devices):
            session.console.warn(
                f"{plan.shards} shards for {len(placement.devices)} workers: some have nothing to do "
                "(--shard-size makes smaller ones)"
            )
        layout = plan_layout(session, plan)
        generated = run_pool(plan, pool, layout, job, deliver=placement.deliver, verify=verify, starts=starts)
    return plan, generated, facts, ",".join(placement.devices)


def _start(session: Session, plan: AnyPlan) -> None:
    from dcdm_cli.generation.pricing import check_disk
    from dcdm_cli.model.adapter import read_adapter

    warn_unreachable(session, plan)
    check_disk(plan, plan_layout(session, plan), read_adapter(session.run.adapter).resolution)
    if session.force:
        _set_aside(session.run.generated, plan)


def warn_unreachable(session: Session, plan: AnyPlan) -> None:
    if plan.unreachable:
        session.console.warn(
            f"{plan.unreachable} of {len(plan)} targets lie outside what this adapter can reach on average; "
            "they get the nearest end (dcdm evaluate shows the range)"
        )


def _difficulty_summary(generated: Generated) -> dict[str, Any]:
    import numpy as np

    from dcdm_cli.evaluation.adherence import per_source

    target, measured, predicted, label = generated.columns(
        "target_difficulty", "measured_difficulty", "predicted", "label"
    )
    scored = np.isfinite(measured)  # the others say nothing about their labels
    known = bool(scored.any())
    by_source = per_source(target, measured, predicted == label, generated.texts("prompt_source"))
    return {
        "target_mean": float(target.mean()) if len(target) else None,
        "measured_mean": float(np.nanmean(measured)) if known else None,
        "label_agreement": float((predicted == label)[scored].mean()) if known else None,
        "not_scored": int((~scored).sum()) if known else len(scored),
        "label_checked": generated.label_checked,
        **({"prompt_sources": by_source} if by_source else {}),
    }


def _prediction(plan: AnyPlan) -> dict[str, float]:
    """What the plan was priced at, when it was."""
    from dcdm_cli.gate import read_document
    from dcdm_cli.generation.plan_file import PlanFile
    from dcdm_cli.generation.pricing import Priced

    if not isinstance(plan, PlanFile) or not price_file(plan.path).is_file():
        return {}
    again = "remove it, or make the plan again: dcdm generate --plan"
    return {"predicted_seconds": read_document(price_file(plan.path), Priced, again).seconds}


def _set_aside(folder: Path, plan: AnyPlan) -> None:
    """--force keeps the old images until the new ones are complete. New ones that were begun are gone on with, or
    dropped when by now others are asked for."""
    from dcdm_cli.generation.plan_file import PlanFile

    old, begun = set_aside(folder), folder / "plan.parquet"
    if not old.exists():
        if folder.exists():
            folder.rename(old)
    elif not begun.is_file() or PlanFile(begun).hash != plan.hash:
        remove([folder])


def _is_intact(session: Session) -> bool:
    """False when of finished images not all are there any more; says what is missing. It is made again, it alone."""
    from dcdm_cli.generation.ledger import Ledger
    from dcdm_cli.generation.plan_file import PlanFile

    file = session.run.generated / "plan.parquet"
    if not file.is_file():
        missing = f"{file} is gone"
    else:
        plan = PlanFile(file)
        missing = Ledger(plan, plan_layout(session, plan)).missing()
    if missing:
        session.console.note(missing)
    return not missing


def drop_damaged(run: RunFolder) -> list[str]:
    """Removes of what other tools read the files that are not as they were, so that they are written again from the
    shards. Returns their names."""
    record, dropped = run.record("generate"), []
    for name, _ in run.changes(record) if record else ():
        file = run.path / name
        if file.is_relative_to(run.generated) and str(file.relative_to(run.generated)) in PROJECTIONS:
            file.unlink(missing_ok=True)
            dropped.append(name)
    return dropped


def _drop_old(folder: Path) -> None:
    remove([set_aside(folder)])
