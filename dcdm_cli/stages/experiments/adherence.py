"""The adherence experiment: requested against realised difficulty before and after calibration, per class, and the
densities of realised difficulty of every arm and of the real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.evaluation.judge import Judge
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.stages.adherence import reachable_targets, summary
from dcdm_cli.stages.agreement import scorer_and_judge
from dcdm_cli.stages.devices import run_features
from dcdm_cli.stages.experiments.generators import ready_for
from dcdm_cli.stages.judge import judge_said, open_judge
from dcdm_cli.stages.probe import open_run_engine, plan_inputs, probe, probe_rows

if TYPE_CHECKING:
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.evaluation.experiments import ArmSpec, Experiment
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import PlanRow


def adherence_document(session: Session, experiment: Experiment, data: Evaluated, job: Job) -> dict[str, Any]:
    data = judge_said(session, data)
    judge = open_judge(session, data.manifest, job)
    known = scorer_and_judge(session, data, judge, job)
    engine = open_run_engine(session, session.run.adapter, job)
    steered = {
        name: _probed(session, engine, judge, data, job, calibrated=calibrated)
        for name, calibrated in (("uncalibrated", False), ("calibrated", True))
    }
    del engine  # its networks must go before those of the arms come
    densities = {"real": _real(session, data, job)}
    for arm in experiment.arms:
        densities[arm.name] = _arm(session, experiment, arm, judge, job)
    found = {"adherence": steered, "densities": densities, "competence": known["competence"]}
    return found | {"warnings": list(data.warnings)}


def _probed(
    session: Session, engine: Engine, judge: Judge | None, data: Evaluated, job: Job, *, calibrated: bool
) -> dict[str, Any]:
    """The same targets and seeds twice, so that the two differ in the calibration alone."""
    from dcdm_cli.evaluation.adherence import Agreement

    config = session.config.evaluate
    agreement = Agreement(judge.labels if judge else None)
    probed = probe(
        session,
        engine,
        reachable_targets(session)[1],
        config.per_target,
        job,
        seed=config.seed + session.config.seed,
        calibrated=calibrated,
        watch=lambda rows, images, _: agreement.add(images, _labels(rows)),
    )
    return summary(probed, agreement.agrees, data.manifest.class_names)


def _arm(session: Session, experiment: Experiment, arm: ArmSpec, judge: Judge | None, job: Job) -> dict[str, Any]:
    """Images at the arm's own target distribution, as `dcdm generate` would make them."""
    from dcdm_cli.evaluation.adherence import Agreement, density, share_kept
    from dcdm_cli.generation.budget import Budget
    from dcdm_cli.generation.plan import make_plan
    from dcdm_cli.generation.targets import parse_target

    spec = experiment.adapter(arm.adapter)
    own = ready_for(arm, session, spec, job)
    engine, config = open_run_engine(own, own.run.adapter, job), own.config
    inputs = plan_inputs(own)
    counts = Budget(count=config.evaluate.density_images).per_label(np.ones(len(inputs.class_names)))
    seed = config.evaluate.seed + config.seed
    plan = make_plan(inputs, counts, parse_target(config.generate.difficulty), seed, engine.generator)
    agreement = Agreement(judge.labels if judge else None)

    def watch(rows: Sequence[PlanRow], images: np.ndarray, realised: np.ndarray) -> None:
        agreement.add(images, _labels(rows))

    probed = probe_rows(own, engine, plan.rows(), job, watch)
    return {**density(probed.realised), "label_agreement": share_kept(agreement.agrees)}


def _real(session: Session, data: Evaluated, job: Job) -> dict[str, Any]:
    """Held-out real images by the same scorer that measures the generated ones."""
    from dcdm_cli.evaluation.adherence import density
    from dcdm_cli.evaluation.data import held_out_difficulty

    looked, saved = run_features(session, job), "adherence is measured again"
    return density(held_out_difficulty(session.run.scorer, data.held_out, looked, job, saved))


def _labels(rows: Sequence[PlanRow]) -> np.ndarray:
    return np.array([row.label for row in rows])
