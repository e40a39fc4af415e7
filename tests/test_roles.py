"""Every setting says what it changes, and nothing else decides what has to be made again: on records, without work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from PIL import Image
from pydantic import BaseModel

from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest, write_manifest
from dcdm_cli.evaluation.experiments import Experiment
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import flat_items, known_keys, resolve
from dcdm_cli.run.roles import (
    BUDGET,
    EXECUTION,
    FILES,
    OUTCOME,
    PLAN,
    PROMPTS,
    ROLES,
    fingerprint,
    others,
    result,
    role_of,
)
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import Config, Section
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.adherence import adherence_stage
from dcdm_cli.stages.atlas import atlas_stage
from dcdm_cli.stages.calibrate import calibrate_stage
from dcdm_cli.stages.caption import caption_files_stage, caption_stage
from dcdm_cli.stages.distill import distill_stage
from dcdm_cli.stages.evaluate import evaluate_stage
from dcdm_cli.stages.experiments.arms import named_arms
from dcdm_cli.stages.experiments.run import experiment_stage, files_of
from dcdm_cli.stages.experiments.sets import GeneratedSets
from dcdm_cli.stages.export import export_stage
from dcdm_cli.stages.finetune import finetune_stage
from dcdm_cli.stages.generate import generate_stage
from dcdm_cli.stages.judge import judge_stage
from dcdm_cli.stages.next_plan import next_plan_stage
from dcdm_cli.stages.prompts import prompts_stage
from dcdm_cli.stages.score import scan_options, score_stage

ARMS = ("plain", "dcdm", "hard")
EXPERIMENT = Experiment(name="x", arms=tuple(named_arms(ARMS)))
STAGES: dict[str, Callable[[Session], Stage]] = {
    "score": lambda session: score_stage(
        session, session.config.data.source, scan_options(session, session.config.data.source)
    ),
    "caption": caption_stage,
    "caption-files": caption_files_stage,
    "prompts": prompts_stage,
    "finetune": finetune_stage,
    "calibrate": calibrate_stage,
    "distill": distill_stage,
    "export": export_stage,
    "generate": generate_stage,
    "judge": lambda session: judge_stage(session, "images"),
    "adherence": adherence_stage,
    "evaluate": evaluate_stage,
    "atlas": atlas_stage,
    "next-plan": next_plan_stage,
    "experiment": lambda session: experiment_stage(session, EXPERIMENT, files_of(session, EXPERIMENT)),
}  # in the order in which they are made


def section_of(key: str) -> tuple[type[BaseModel], str]:
    section, _, name = key.rpartition(".")
    model: Any = Config.model_fields[section].annotation if section else Config
    return model, name


ROLE = {key: role_of(*section_of(key)) for key in known_keys()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of one image per class, and a prompt for each class."""
    folder = tmp_path_factory.mktemp("photos")
    for label in ("cat", "dog"):
        (folder / f"{label}.txt").write_text(f"one {label}\n")
    for source in ("one", "other"):
        for label in ("cat", "dog"):
            (folder / source / label).mkdir(parents=True)
            Image.new("RGB", (9, 9), (label == "cat" and "red") or "blue").save(folder / source / label / "a.png")
    return folder


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A run in which every stage is recorded, with the settings as they are by default."""
    run = RunFolder(tmp_path_factory.mktemp("roles") / "run")
    run.create()
    rows = [
        {"sample_id": f"{label:032x}", "path": f"{name}.png", "label": label, "class_name": name, "split": "train"}
        | {"synthetic": False, "difficulty": 0.5, "caption": name}
        for label, name in enumerate(("cat", "dog"))
    ]
    write_manifest(Manifest.from_rows(rows, ["cat", "dog"]), run.samples)
    flags = {"data.source": "digits", "finetune.precision": "fp32", "generate.precision": "fp32"}
    flags["finetune.strength"] = "auto"  # what it tries is asked of then alone
    made = Session(run, resolve(flags=flags), Console(quiet=True), False, False, {})
    for stage in STAGES.values():
        run.run(stage(made), lambda: Outcome([], ""))
    return made


OF_A_FORM = {"data.split_map": ["val=test"], "strength.guidance": [[2.0, 2.0]]}


def another(key: str, value: Any, photos: Path) -> dict[str, Any]:
    """Another value that the setting may have, as {name: value}."""
    model, name = section_of(key)
    if key in OF_A_FORM:
        return {name: OF_A_FORM[key]}
    words = literals(model.model_fields[name].annotation)
    odd = [str(photos), True, False, 1, 2, 3, 7, 64, 0.25, 0.75, 1.5, [3, 5], [0.25, 0.75], ["real"], {"depth": 3}]
    for candidate in (*words, *odd):
        try:
            made = model.model_validate({name: candidate}).model_dump(mode="json")[name]
        except ValueError:
            continue
        if made != value and not (isinstance(candidate, bool) and not isinstance(value, bool)):
            return {name: candidate}
    raise AssertionError(f"no other value for {key}")


def literals(kind: Any) -> list[Any]:
    inner = [word for part in get_args(kind) if get_origin(part) for word in literals(part)]
    return inner + [word for word in get_args(kind) if isinstance(word, str)]


def with_another(session: Session, key: str, photos: Path) -> Session:
    section, _, _ = key.rpartition(".")
    changed = another(key, flat_items(session.config)[key], photos)
    if section:
        return session.with_settings(**{section: changed})
    config = Config.model_validate({**session.config.model_dump(), **changed})
    return Session(session.run, type(session.resolved)(config, {}), session.console, False, False, {})


def stale(session: Session) -> set[str]:
    return {name for name, stage in STAGES.items() if session.run.is_fresh(stage(session)) is None}


def sets(session: Session) -> list[str]:
    from dcdm_cli.data.manifest import read_manifest

    made = GeneratedSets(session, EXPERIMENT, read_manifest(session.run.samples), Job())
    return [made.key(arm, 0.5, seed=1) for arm in EXPERIMENT.arms]


def test_everything_is_fresh_to_begin_with(session: Session) -> None:
    assert stale(session) == set()


@pytest.mark.parametrize("key", [key for key, role in ROLE.items() if role == EXECUTION])
def test_how_the_work_is_done_makes_nothing_stale(key: str, session: Session, photos: Path) -> None:
    changed = with_another(session, key, photos)
    assert stale(changed) == set()
    assert sets(changed) == sets(session)


@pytest.mark.parametrize("key", [key for key, role in ROLE.items() if role != EXECUTION])
def test_what_changes_the_outcome_makes_its_stage_stale(key: str, session: Session, photos: Path) -> None:
    found = stale(with_another(session, key, photos))
    section = key.partition(".")[0]
    own = {"seed": "score", "data": "score", "downstream": "evaluate", "strength": "finetune"}.get(section, section)
    own = {FILES: "caption-files", PROMPTS: "prompts"}.get(ROLE[key], own) if section == "caption" else own
    assert own in found


@pytest.mark.parametrize("key", [key for key in ROLE if key.startswith("generate.") and ROLE[key] != EXECUTION])
def test_sets_depend_on_how_images_are_made_and_not_on_the_runs_own_number_or_files(
    key: str, session: Session, photos: Path
) -> None:
    same = sets(with_another(session, key, photos)) == sets(session)
    assert same == (ROLE[key] in (BUDGET, FILES))


def test_copies_of_captions_make_no_later_stage_stale(session: Session, photos: Path) -> None:
    assert stale(with_another(session, "caption.sidecars", photos)) == {"caption-files"}


def test_a_field_without_a_role_is_an_error() -> None:
    class Unmarked(Section):
        marked: int = result(default=1)
        unmarked: int = 1

    with pytest.raises(TypeError, match=r"Unmarked\.unmarked has no role"):
        fingerprint(Unmarked())


def test_a_section_is_its_fingerprint_and_the_others() -> None:
    generate = Config().generate
    assert {**fingerprint(generate), **others(generate)} == generate.model_dump(mode="json")
    assert set(fingerprint(generate, PLAN, BUDGET)) & set(others(generate, PLAN, BUDGET)) == set()
    counted = {role_of(type(made), name) for made in (generate, Config().caption) for name in fingerprint(made)}
    assert counted == set(OUTCOME) < set(ROLES)


def test_a_record_of_before_with_all_settings_is_still_fresh(session: Session, tmp_path: Path) -> None:
    """Older records hold every setting, and lack optional ones that came later; a run must not train again for that."""
    session = session.with_settings(finetune={"strength": None})
    stage = finetune_stage(session)
    old = {**session.config.finetune.model_dump(mode="json"), "run_seed": 0, "keep_checkpoints": 7}
    del old["revision"]
    run = RunFolder(tmp_path)
    run.run(Stage("finetune", old, stage.inputs), lambda: Outcome([], ""))
    assert run.is_fresh(stage) is not None
    for other in ({"steps": 3}, {"processes": 2}):
        run.run(Stage("finetune", {**old, **other}, stage.inputs), lambda: Outcome([], ""))
        assert run.is_fresh(stage) is None


def test_an_evaluation_of_before_with_sections_is_still_fresh(session: Session, tmp_path: Path) -> None:
    stage = adherence_stage(session)
    old: dict[str, Any] = {key: value for key, value in stage.config.items() if not isinstance(value, Mapping)}
    old |= {name: getattr(session.config, name).model_dump(mode="json") for name in ("generate", "judge")}
    old["generate"]["decode_batch"] = 4
    run = RunFolder(tmp_path)
    run.run(Stage("adherence", old, stage.inputs), lambda: Outcome([], ""))
    assert run.is_fresh(stage) is not None
    old["generate"]["steps"] = 4
    run.run(Stage("adherence", old, stage.inputs), lambda: Outcome([], ""))
    assert run.is_fresh(stage) is None


def test_ids_of_stages_do_not_depend_on_how_the_work_was_done(session: Session, tmp_path: Path) -> None:
    ids = set()
    for checkpoints in (2, 3):
        run = RunFolder(tmp_path / str(checkpoints))
        stage = finetune_stage(session.with_settings(finetune={"keep_checkpoints": checkpoints}))
        record, _ = run.run(stage, lambda: Outcome([], "x"))
        assert record.uncounted["keep_checkpoints"] == checkpoints
        ids.add(record.id)
    assert len(ids) == 1


def test_a_calibration_of_before_holds_with_what_is_off_written_or_not(session: Session) -> None:
    """Older ones name `clip_range` where it is off, and not yet `guidance_interval`."""
    import numpy as np

    from dcdm_cli.difficulty.calibration import fit_calibration, save_calibration
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import CALIBRATION_FILE
    from dcdm_cli.stages.probe import usable_calibration

    settings = sampler_settings(session.config.generate)
    requested = np.tile(np.linspace(0.1, 0.9, 9), 20)
    label = np.repeat([0, 1], 90)
    session.run.adapter.mkdir()
    for told, holds in ({"clip_range": None}, True), ({}, True), ({"guidance_interval": [0.1, 0.5]}, False):
        fitted = fit_calibration(requested, requested, requested < 2, label, 2, {**settings, **told})
        save_calibration(fitted, session.run.adapter / CALIBRATION_FILE)
        assert (usable_calibration(session) is not None) == holds
