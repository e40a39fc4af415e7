"""The label check of a run: made when first asked for, below `checker/<key>/`, and found again afterwards.

A folder is named by everything the check comes from, so that jobs that know nothing of each other share it without a
lock, and another check never takes the place of the one that images were made with.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.files import hash_bytes, hash_file, hash_json, hash_tree
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session

if TYPE_CHECKING:
    from dcdm_cli.difficulty.verdict import Checker

CLIP = "openai/clip-vit-base-patch32"
SEED = 600  # of the folds behind the head on features, beside the run's


def check_input(session: Session) -> dict[str, str]:
    """What a stage that looks at labels depends on besides the settings; empty without a check. Loads no model."""
    key = check_key(session)
    return {"check": key} if key else {}


def check_key(session: Session) -> str | None:
    """Hash of what `generate.check` comes from, None where it is off. Files that are missing are not its business."""
    check = session.config.generate.check
    return None if check is None else hash_json([check, _class_names(session), _made_from(session, check)])[:16]


def check_files(session: Session) -> tuple[Path, ...]:
    """The folder of the check, as far as it was made."""
    key = check_key(session)
    return (session.run.checker / key,) if key else ()


def generator_files(session: Session) -> tuple[Path, ...]:
    """What every stage opens that makes images. An export is not among them: it is held against its own signature
    when it is opened."""
    run = session.run
    return (run.samples, run.scorer, *run.weights, run.calibration, *check_files(session), *run.base_files())


def prepare_check(session: Session, job: Job) -> Path | None:
    """The folder of the run's label check, None where it is off. To be called before anything slow: whatever is wrong
    with the check is said here.

    Raises MismatchError for classes that it does not know, NotFoundError for a model or file that is not there.
    """
    key, check = check_key(session), session.config.generate.check
    if key is None or check is None:
        return None
    folder = session.run.checker / key
    # written under another name and renamed: one that is there is whole
    if not folder.is_dir():
        _make(session, check, folder, job)
        session.console.note(f"label check: {check}")
    return folder


def open_check(session: Session, job: Job) -> Checker | None:
    """`prepare_check`, ready to be asked on the job's device."""
    folder = prepare_check(session, job)
    if folder is None:
        return None
    from dcdm_cli.difficulty.label_check import open_label_check

    return open_label_check(folder, job.device)


def _made_from(session: Session, check: str) -> object:
    from dcdm_cli.difficulty.own_files import classifier_files

    config = session.config
    if check == "digits":
        return None
    if check == "features":
        # keep_suspects too: it decides what the head learns from
        score = config.score
        return [session.run.require("score").id, score.features, score.feature_size, config.finetune.keep_suspects]
    if check == "clip":
        model = _clip(session)
        # a name on the hub stands for itself; what is in a folder may change under its name
        return [model, _captions(session), hash_tree(Path(model)) if Path(model).is_dir() else ""]
    return hash_bytes(*(hash_file(file).encode() for file in classifier_files(Path(check)))), config.score.model


def _make(session: Session, check: str, folder: Path, job: Job) -> None:
    from dcdm_cli.difficulty import label_check

    names = _class_names(session)
    if check == "digits":
        label_check.save_digits_check(folder, names)
    elif check == "features":
        _fit_on_features(session, folder, job)
    elif check == "clip":
        label_check.save_clip_check(folder, _clip(session), _captions(session), names)
    else:
        label_check.save_own_check(folder, Path(check), names, session.config.score)


def _fit_on_features(session: Session, folder: Path, job: Job) -> None:
    """A head that learned from the images that fine-tuning uses: trusted labels, unless it is told otherwise."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.data.shown import refuse_other_pictures
    from dcdm_cli.difficulty.feature_cache import FeatureCache
    from dcdm_cli.difficulty.feature_folds import Seen, head_on_all
    from dcdm_cli.difficulty.label_check import save_features_check
    from dcdm_cli.difficulty.scoring import Scoring, seen_features
    from dcdm_cli.training.dataset import training_rows

    run, config = session.run, session.config
    rows = training_rows(read_manifest(run.samples), config.finetune.keep_suspects)
    # features are kept under the ids of what was scored
    refuse_other_pictures(rows, job.stoppable("the label check is not begun"))
    place = Scoring(run.checkpoints / "checker", cache=FeatureCache(run.cache / "features"))
    table, extractor = seen_features(rows, config.score, place.features, job)
    head = head_on_all(Seen.of(table, rows), extractor, config.seed + SEED, job.device)
    save_features_check(folder, head, rows.class_names, extractor)


def _class_names(session: Session) -> tuple[str, ...]:
    from dcdm_cli.data.manifest import manifest_classes

    return manifest_classes(session.run.samples) or ()


def _clip(session: Session) -> str:
    return session.config.generate.check_model or CLIP


def _captions(session: Session) -> list[str]:
    from dcdm_cli.captioning.templates import class_captions

    return class_captions(_class_names(session), session.config.caption)
