"""A network in 8-bit floats: the calls that set its ranges, and whether its images are what they were.

Not from the paper. Rounding that each output survives may still shift what is drawn after all steps: the gate is what
the scorer finds in finished images, of the same seeds, with 8 bits and without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import CapabilityError, NumericalError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session, with_settings

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import PlanRow
    from dcdm_cli.stages.probe import Probed

BATCH, CALLS = 2, 128  # images of a recorded call; MLPerf's rules for 8 bits let as many prompts set the ranges
SEED = 800  # of the images that are looked at, beside the run's
REQUESTS, EACH = 3, 32  # difficulties over the real images' own, and images of each
DRIFT, LOST = 0.03, 0.03  # of mean difficulty, and of the share of labels that the scorer sees


def check_quantizer() -> None:
    """Raises CapabilityError with the extra to install."""
    from dcdm_export.fp8 import missing_parts

    if missing := missing_parts():
        raise CapabilityError(
            f"--precision fp8 needs ModelOpt, and there is no {missing[0]}", "pip install 'dcdm-cli[fp8]'"
        )


def sampled_calls(session: Session, job: Job) -> list[dict[str, np.ndarray]]:
    """Of the network in use with the session's sampler, over the whole range of difficulties."""
    from dcdm_cli.generation.calls import record_calls

    # + 1: other images than `judge_fp8` looks at, which must not judge by those that set the ranges
    return record_calls(_exact(session, job), _rows(session, "", session.config.seed + SEED + 1), job, BATCH, CALLS)


def judge_fp8(session: Session, job: Job) -> dict[str, Any]:
    """The same images from torch and from the finished export. Returns mean differences, or why there are none.

    Raises NumericalError, and the export is not used, when difficulty or labels are not what they were.
    """
    from dcdm_cli.stages.probe import first_draws, open_run_engine, probe_rows

    if not session.run.scorer.exists():
        return _not_judged(session, "the run has no scorer")
    try:
        # compared image by image: of several draws the two networks might keep different ones
        quantised = first_draws(open_run_engine(session, session.run.adapter, job))
    except CapabilityError as error:
        return _not_judged(session, error.message)
    rows = _rows(session, quantised.generator, session.config.seed + SEED)
    made = probe_rows(session, quantised, rows, job, check=False)
    exact = probe_rows(session, _exact(session, job), rows, job, check=False)
    found = {"images": len(rows), **_differences(made, exact)}
    told = (
        f"fp8: {found['difficulty']:+.3f} of difficulty (± {found['difficulty_error']:.3f}) and "
        f"{found['agreement']:+.1%} of labels seen (± {found['agreement_error']:.1%}), over {len(rows)} images of the "
        "same seeds"
    )
    # what the interval allows is not held against it: so few images tell no finer
    shifted = abs(found["difficulty"]) - found["difficulty_error"] > DRIFT
    if shifted or found["agreement"] + found["agreement_error"] < -LOST:
        # its presence is what says that an export is complete: without it nobody takes the networks
        (session.run.export / "signature.json").unlink(missing_ok=True)
        raise NumericalError(
            f"{told}; allowed: {DRIFT} either way, and {LOST:.0%} fewer labels", "use --precision fp16"
        )
    session.console.note(told)
    return found


def _not_judged(session: Session, why: str) -> dict[str, Any]:
    session.console.warn(f"fp8: what it does to difficulty and labels is not measured: {why}")
    return {"reason": why}


def _differences(made: Probed, exact: Probed) -> dict[str, float]:
    """Mean difference of each, image by image, and half its 95 % interval: a few images change sides whatever is
    rounded."""
    import numpy as np

    pairs = {"difficulty": made.realised - exact.realised, "agreement": made.agrees.astype(float) - exact.agrees}
    found = {}
    for name, difference in pairs.items():
        known = difference[np.isfinite(difference)]
        found[name] = round(float(known.mean()), 4)
        found[f"{name}_error"] = round(float(1.96 * known.std(ddof=1) / np.sqrt(len(known))), 4)
    return found


def _exact(session: Session, job: Job) -> Engine:
    """By torch, in the device's own precision: one draw each."""
    from dcdm_cli.stages.probe import first_draws, open_run_engine

    own = with_settings(session, generate={"backend": "torch", "precision": "auto"})
    return first_draws(open_run_engine(own, session.run.adapter, job, insist=False))


def _rows(session: Session, generator: str, seed: int) -> list[PlanRow]:
    from dcdm_cli.generation.plan import grid_plan
    from dcdm_cli.stages.calibrate import probe_points
    from dcdm_cli.stages.probe import plan_inputs

    points = probe_points(session, REQUESTS)
    return grid_plan(plan_inputs(session, calibrated=False), points, EACH, seed, generator).rows()
