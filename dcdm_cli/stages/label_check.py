"""The label check of a run: made when first asked for, below `checker/<key>/`, and found again afterwards.

A folder is named by everything the check comes from, so that jobs that know nothing of each other share it without a
lock, and another check never takes the place of the one that images were made with.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.files import hash_bytes, hash_file, hash_json, hash_tree
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Context

if TYPE_CHECKING:
    from dcdm_cli.difficulty.verdict import Checker

CLIP = "openai/clip-vit-base-patch32"
SEED = 600  # of the folds behind the head on features, beside the run's


def check_input(context: Context) -> dict[str, str]:
    """What a stage that looks at labels depends on besides the settings; empty without a check. Loads no model."""
    key = check_key(context)
    return {"check": key} if key else {}


def check_key(context: Context) -> str | None:
    """Hash of what `generate.check` comes from, None where it is off. Files that are missing are not its business."""
    check = context.config.generate.check
    return None if check is None else hash_json([check, _class_names(context), _made_from(context, check)])[:16]


def prepare_check(context: Context, job: Job) -> Path | None:
    """The folder of the run's label check, None where it is off. To be called before anything slow: whatever is wrong
    with the check is said here.

    Raises MismatchError for classes that it does not know, NotFoundError for a model or file that is not there.
    """
    key, check = check_key(context), context.config.generate.check
    if key is None or check is None:
        return None
    folder = context.run.checker / key
    if not folder.is_dir():
        _make(context, check, folder, job)
        context.console.note(f"label check: {check}")
    return folder


def open_check(context: Context, job: Job) -> Checker | None:
    """`prepare_check`, ready to be asked on the job's device."""
    folder = prepare_check(context, job)
    if folder is None:
        return None
    from dcdm_cli.difficulty.label_check import open_label_check

    return open_label_check(folder, job.device)


def _made_from(context: Context, check: str) -> object:
    from dcdm_cli.difficulty.own_files import classifier_files

    config = context.config
    if check == "digits":
        return None
    if check == "features":
        score = config.score
        return [context.run.require("score").id, score.features, score.feature_size, config.finetune.keep_suspects]
    if check == "clip":
        model = _clip(context)
        return [model, _captions(context), hash_tree(Path(model)) if Path(model).is_dir() else ""]
    return hash_bytes(*(hash_file(file).encode() for file in classifier_files(Path(check)))), config.score.model


def _make(context: Context, check: str, folder: Path, job: Job) -> None:
    from dcdm_cli.difficulty import label_check

    names = _class_names(context)
    if check == "digits":
        label_check.save_digits_check(folder, names)
    elif check == "features":
        _fit_on_features(context, folder, job)
    elif check == "clip":
        label_check.save_clip_check(folder, _clip(context), _captions(context), names)
    else:
        label_check.save_own_check(folder, Path(check), names, context.config.score)


def _fit_on_features(context: Context, folder: Path, job: Job) -> None:
    """A head that learned from the images that fine-tuning uses: trusted labels, unless it is told otherwise."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.difficulty.feature_folds import Seen, head_on_all
    from dcdm_cli.difficulty.label_check import save_features_check
    from dcdm_cli.difficulty.scoring import Scoring, features_of
    from dcdm_cli.training.dataset import training_rows

    run, config = context.run, context.config
    rows = training_rows(read_manifest(run.samples), config.finetune.keep_suspects)
    place = Scoring(run.checkpoints / "checker", cache=run.cache / "features")
    table, extractor = features_of(rows, config.score, place.features, job)
    head = head_on_all(Seen.of(table, rows), extractor, config.seed + SEED, job.device)
    save_features_check(folder, head, rows.class_names, extractor)


def _class_names(context: Context) -> tuple[str, ...]:
    from dcdm_cli.data.manifest import manifest_classes

    return manifest_classes(context.run.samples) or ()


def _clip(context: Context) -> str:
    return context.config.generate.check_model or CLIP


def _captions(context: Context) -> list[str]:
    from dcdm_cli.captioning.templates import class_captions

    return class_captions(_class_names(context), context.config.caption)
