"""The closed loop after fine-tuning: probe what comes out, fit requested -> realised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import FlatResponseError
from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.session import Session
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.known import scorer_words
from dcdm_cli.stages.prompts import prompt_input

if TYPE_CHECKING:
    from dcdm_cli.difficulty.calibration import Calibration


def run_calibrate(session: Session) -> StageRecord | None:
    """The closed loop, unless it is switched off, there is no scorer, or the adapter has no difficulty."""
    run, config = session.run, session.config
    plain = config.finetune.conditioning == "none"
    if not config.calibrate.enabled or plain or not run.scorer.exists():
        return None
    from dcdm_cli.model.adapter import CALIBRATION_FILE

    file = run.adapter / CALIBRATION_FILE
    with run.lock("dcdm finetune (calibration)"):
        record, _ = run.run(calibrate_stage(session), lambda: _calibrate(session, file), force=session.force)
    low, high = record.results["reachable"]
    session.console.note(f"calibrated: mean difficulty {low:.2f} to {high:.2f} can be reached")
    if sources := record.results.get("prompt_sources"):
        from dcdm_cli.reports.quality_tables import prompt_table

        session.console.note(prompt_table(sources).sentence)
    if known := scorer_words(run):
        session.console.note(known, once=True)
    return record


def calibrate_stage(session: Session) -> Stage:
    from dcdm_cli.generation.engine import sampler_settings

    run, config = session.run, session.config
    settings = {**fingerprint(config.calibrate), "sampler": sampler_settings(config.generate)}
    settings["attempts"] = config.generate.attempts  # decides what is reachable
    inputs = {**run.adapter_ids(), "score": run.require("score").id, **prompt_input(session)}
    reads = (run.samples, run.scorer, *run.weights, *run.base_files())
    return Stage("calibrate", settings, inputs, others(config.calibrate), reads)


def _calibrate(session: Session, file: Path) -> Outcome:
    from dcdm_cli.difficulty.calibration import save_calibration
    from dcdm_cli.evaluation.adherence import per_source
    from dcdm_cli.files import hash_file
    from dcdm_cli.stages.probe import open_run_engine, probe

    config, job = session.config, open_job(session)
    engine = open_run_engine(session, session.run.adapter, job, insist=False)  # export comes after fine-tuning
    points = probe_points(session)
    # seed + 500: draws of its own; strength, own draws and 8 bits have theirs
    measured = probe(session, engine, points, config.calibrate.images, job, seed=config.seed + 500, calibrated=False)
    calibration = fit(measured, len(engine.info.class_names), engine.config)
    save_calibration(calibration, file)
    # after saving: the file is of single draws, and what is reachable counts how many there are at the time
    calibration = replace(calibration, attempts=config.generate.attempts)
    results: dict[str, Any] = {"reachable": list(calibration.reachable), "realised": list(calibration.realised)}
    by_source = per_source(measured.requested, measured.realised, measured.agrees, measured.prompt_source)
    results |= {"prompt_sources": by_source} if by_source else {}
    return Outcome([file], hash_file(file), results | {"requested": list(calibration.requested)}, job.device)


def calibrate_chosen(session: Session) -> StageRecord | None:
    """`run_calibrate`, for which a flat response is an outcome where the strength was chosen by what images are worth:
    weak fine-tuning may be worth most, and difficulty is then had by choosing among draws."""
    try:
        return run_calibrate(session)
    except FlatResponseError as error:
        if session.config.finetune.strength != "auto":
            raise
        again = f"dcdm finetune --strength STEPS --force{run_words(session.run)}"
        session.console.warn(
            f"{error.message}: at this strength of fine-tuning the request says little, and images get the difficulty "
            f"asked for by being drawn again (--attempts); "
            f"{again} replaces the adapter by one that is trained as far as you say"
        )
        return None


def probe_points(session: Session, count: int | None = None) -> list[float]:
    """Difficulties to probe, and so the only ones that generation will ask for: where the model was shown images.

    Not from the paper. A request outside the difficulties of the real images is extrapolation, and what comes out has
    lost its label more often than its ease. count: how many; None = as set.
    """
    import numpy as np

    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.training.dataset import training_rows

    config = session.config
    real = training_rows(read_manifest(session.run.samples), config.finetune.keep_suspects).column("difficulty")
    low, high = np.quantile(real, [config.calibrate.tails, 1 - config.calibrate.tails])
    return np.linspace(low, high, count or config.calibrate.points).round(4).tolist()


def fit(measured: Any, classes: int, config: Any) -> Calibration:
    from dcdm_cli.difficulty.calibration import fit_calibration
    from dcdm_cli.generation.engine import sampler_settings

    return fit_calibration(
        measured.requested, measured.realised, measured.agrees, measured.label, classes, sampler_settings(config)
    )
