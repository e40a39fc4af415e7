"""Scores real images: how hard each one is, out of fold."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcdm_cli.errors import UsageError
from dcdm_cli.files import hash_file, hash_json
from dcdm_cli.run.keeping import refuse_replacing
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import all_others, fingerprints
from dcdm_cli.run.session import Session, write_starter_config
from dcdm_cli.run.settings import Config
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.devices import Placement, pool_of, run_features, settle_placement
from dcdm_cli.stages.first_look import first_look_sentences
from dcdm_cli.stages.jobs import open_job

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from dcdm_cli.data.candidates import ScanOptions
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.data.sources import Scan


def run_score(session: Session, source: str | None = None) -> StageRecord:
    """Scans and scores unless nothing changed. Raises UsageError without a source."""
    run = session.run
    source, options, stage = settled_source(session, source)
    run.create()
    with run.lock("dcdm score"):
        if not session.force:
            refuse_other_source(run, stage)
        record, done = run.run(stage, lambda: _scan_and_score(session, source, options, stage), force=session.force)
        shutil.rmtree(run.checkpoints / "scorer", ignore_errors=True)  # only now: a kill before that loses nothing
        # never overwritten later: a source that was a slip must not get into it, so it is written after the work
        write_starter_config(run, {"data.source": source, **session.starter_settings()})
    if not done:
        session.console.note("score: nothing changed, skipped (--force runs it again)")
        if left_out := record.results["rejected"]:
            session.console.warn(f"{left_out} of the source's images were left out; all in {run.rejected}")
    return record


def settled_source(session: Session, source: str | None) -> tuple[str, ScanOptions, Stage]:
    """The source that is meant, how it is read, and the stage, for which it is listed. Raises UsageError without one,
    and what listing it raises."""
    source = source or session.config.data.source
    if not source:
        raise UsageError("no images to score", "name them: dcdm score FOLDER (or hf:owner/name, a CSV, digits)")
    refuse_shared_place(session.run, source)
    options = scan_options(session, source)
    return source, options, score_stage(session, source, options)


def refuse_shared_place(run: RunFolder, source: str) -> None:
    """Raises UsageError where results would lie among the images: the next scan would take folders of the run for
    classes, or a class of that name for results."""
    from dcdm_cli.data.candidates import ScanOptions
    from dcdm_cli.data.folders import holds_images
    from dcdm_cli.data.sources import searched_folder
    from dcdm_cli.data.trees import is_run_folder

    folder, place = searched_folder(source), run.path.resolve()
    if folder is None or not place.is_relative_to(folder):
        return
    if place != folder and (not place.is_dir() or is_run_folder(place) or not holds_images(place, ScanOptions())):
        return
    elsewhere = shlex.quote(os.path.relpath(folder.parent / f"{folder.name}-run"))
    remedy = f"keep the results elsewhere: dcdm score {shlex.quote(source)} --run {elsewhere}"
    if is_run_folder(place):
        remedy = "move the images to a folder of their own, and name that"
    raise UsageError(f"the run folder {run.path} holds the images themselves", remedy, file=run.path)


def refuse_other_source(run: RunFolder, stage: Stage) -> None:
    """Raises MismatchError where scores that took long, or what hangs on them, would be replaced."""
    record = run.record("score")
    ours, theirs = stage.config["source"], record.config.get("source") if record else None
    what = f"scoring {ours}" + (f", while the run is about {theirs}," if theirs != ours else " again")
    refuse_replacing(run, stage, what)


def score_stage(session: Session, source: str, options: ScanOptions) -> Stage:
    config = session.config
    sections = {"data": config.data, "score": config.score}
    settings: dict[str, Any] = {**fingerprints(sections), "source": source, "seed": config.seed}
    del settings["data"]["source"]  # it may have come as an argument
    inputs = {"source": _fingerprint(source, options), **_file_inputs(config)}
    return Stage("score", settings, inputs, all_others(sections))


def _place(source: str, run: RunFolder) -> str:
    """The source as `scan` knows it: the embedded digits become a folder of images."""
    from dcdm_cli.data.digits import is_digits, training_images, write_digits

    if not is_digits(source):
        return source
    return str(write_digits(run.images / source.replace(":", "-"), training_images(source)))


def _scan_and_score(session: Session, source: str, options: ScanOptions, stage: Stage) -> Outcome:
    from dcdm_cli.data.classes import untrainable_warnings
    from dcdm_cli.data.manifest import write_manifest

    run, job, placement = session.run, open_job(session), settle_placement(session)
    key = hash_json([stage.config, stage.inputs])
    spool = run.checkpoints / "scorer" / key[:16]  # what a stopped run goes on from
    check_inputs(session.config)
    found = _scanned(session, source, options, spool / "scan", key, job)
    _warn_of_refusals(session, found.manifest)
    scored = _score(session, found, job, spool, placement)
    manifest = scored.manifest
    # what fine-tuning would refuse is said now
    for warning in untrainable_warnings(manifest):
        session.console.warn(warning)
    run.forget("score", "caption")  # the new table has no captions of ours, and may have other rows
    _keep_own_captions(run, manifest)
    scored.save_scorer(run.scorer)
    write_manifest(manifest, run.samples)
    results = {**scored.results, "images": len(manifest), "rejected": len(found.rejected)}
    results |= {"classes": len(manifest.class_names), "origin": found.origin}
    results |= {
        "splits": [facts.document() for facts in found.splits],
        "left_out": [asdict(one) for one in found.left_out],
        "captions": _captioned(manifest),
        "class_counts": _class_counts(manifest),
    }
    outputs = [run.samples, *([run.scorer] if run.scorer.exists() else []), *_figures(run, manifest)]
    also, listed = [run.rejected, run.own_captions, run.copies], [run.images, run.cache]
    return Outcome(outputs, manifest.digest("sample_id", "difficulty"), results, job.device, also, listed)


def check_inputs(config: Config) -> None:
    """A network, a classifier or a list of corrections that cannot be had is said before hours of reading images.
    Raises what `check_settings` and `read_rows` raise."""
    from dcdm_cli.data.corrections import read_rows
    from dcdm_cli.difficulty.scoring import check_settings

    check_settings(config.score)
    for file in filter(None, (config.data.drop, config.data.relabel)):
        read_rows(file)


def _scanned(session: Session, source: str, options: ScanOptions, spool: Path, key: str, job: Job) -> Scan:
    """What the source is and which of its images can be read, corrected as the user asks; both are said."""
    from dcdm_cli.data.corrections import correct
    from dcdm_cli.data.images import decode_options
    from dcdm_cli.data.sources import TooManyRejectedError, left_out_sentence, scan_on_disk
    from dcdm_cli.data.writers import write_rejected

    run = session.run
    try:
        options = replace(options, decode=decode_options())
        found = scan_on_disk(_place(source, run), options, run.images, spool, key, job)
    except TooManyRejectedError as error:
        write_rejected(run.rejected, error.rejected)
        raise TooManyRejectedError(
            error.message, f"{error.hint}; all of them are listed in {run.rejected}", error.rejected
        ) from error
    _say_what_was_understood(session, found)
    write_rejected(run.rejected, found.rejected)
    if found.rejected:
        session.console.warn(left_out_sentence(found.rejected, run.rejected))
    corrected = correct(found.manifest, session.config.data.drop, session.config.data.relabel)
    for sentence in corrected.sentences:
        session.console.note(sentence)
    return replace(found, manifest=corrected.manifest)


def _say_what_was_understood(session: Session, found: Scan) -> None:
    """The splits, with what says so, the classes in them, and what is odd. Raises UsageError where nothing is to be
    trained on."""
    from dcdm_cli.data.copies import copy_rows
    from dcdm_cli.data.writers import write_json_lines
    from dcdm_cli.reports.table import save_tables, sentence, shown
    from dcdm_cli.reports.tables import split_table

    console, run = session.console, session.run
    for text in first_look_sentences(session.config):
        console.show(sentence(text))
    console.note(f"understood of {found.origin}:")
    for facts in found.splits:
        console.note(f"  {facts}")
    save_tables([split_table(found.manifest, None)], run.tables)
    for part in shown([split_table(found.manifest)]):
        console.show(part)
    if captioned := _captioned(found.manifest):
        console.note(f"  {captioned} of {len(found.manifest)} images have captions of their own")
    for warning in found.warnings:
        console.warn(warning)
    if found.copies:
        write_json_lines(run.copies, copy_rows(found.copies, found.manifest.table))
        console.note(f"  all copies are listed in {run.copies}")
    else:
        run.copies.unlink(missing_ok=True)  # an earlier scan's list would be of other images
    if not found.splits[0].images:
        raise UsageError(
            f"{found.origin} has no train split, only {' and '.join(found.named)}",
            f"say what its parts are: --split-map {found.named[-1]}=train",
        )


def _warn_of_refusals(session: Session, manifest: Manifest) -> None:
    """What later stages will refuse or leave out is said before hours of work, by their own rules."""
    from dcdm_cli.evaluation.strength import check_unseen
    from dcdm_cli.stages.judge import without_judge
    from dcdm_cli.stages.strength import grid, images_per_point, unseen_at_most

    config = session.config
    tested = len(manifest.split("test")) > 0  # else `dcdm evaluate` stops, as the scan has said
    if tested and (why := without_judge(manifest, config)):
        session.console.warn(f"dcdm evaluate: it will go on {why}")
    if config.finetune.strength == "auto":
        unseen = unseen_at_most(manifest, config.strength.keep_back, config.seed)
        _warn_of(session, "dcdm finetune", lambda: check_unseen(unseen, run_words(session.run)))
        points, budget = grid(session, config.finetune), config.strength.probe_budget
        _warn_of(session, "dcdm finetune", lambda: images_per_point(budget, len(points)))


def _warn_of(session: Session, command: str, check: Callable[[], object]) -> None:
    try:
        check()
    except UsageError as error:
        session.console.warn(f"{command} will stop: {error.message}; {error.hint}")


def _class_counts(manifest: Manifest) -> list[dict[str, Any]]:
    """Images of each class, split by split."""
    from dcdm_cli.data.splits import SPLITS
    from dcdm_cli.data.understood import class_splits

    rows = zip(manifest.class_names, class_splits(manifest).tolist(), strict=True)
    return [{"class": name, **dict(zip(SPLITS, counts, strict=True))} for name, counts in rows]


def _captioned(manifest: Manifest) -> int:
    return len(manifest) - manifest.table["caption"].null_count


def _keep_own_captions(run: RunFolder, manifest: Manifest) -> None:
    """The captions that came with the images, so that the caption stage knows them from its own."""
    from dcdm_cli.captioning.own import write_own_captions

    write_own_captions(run.own_captions, manifest)


class _Scores(NamedTuple):
    """save_scorer: as in `difficulty.scoring.Scored`."""

    manifest: Manifest
    results: dict[str, Any]
    save_scorer: Callable[[Path], None]


def _score(session: Session, found: Scan, job: Job, spool: Path, placement: Placement) -> _Scores:
    """Fills the score columns of the training split; other splits keep nulls."""
    import numpy as np

    from dcdm_cli.difficulty.scoring import Scoring, score_images

    manifest = found.manifest
    is_train = np.asarray(manifest.table["split"].to_numpy(zero_copy_only=False) == "train")
    config = session.config.score
    place = Scoring(
        spool,
        class_map=found.class_map,
        pool=pool_of(session, placement, job),
        threads=placement.threads,
        cache=run_features(session, job, placement),
    )
    # `adapter.measured_views` adds them too, to find out which model has not seen an image
    config = config.model_copy(update={"seed": config.seed + session.config.seed})
    scored = score_images(manifest.select(is_train), config, place, job)
    # stops at a guesser, which gives every image a difficulty too, while the old scores still stand
    known = _known(session, manifest.select(is_train), scored.columns)
    manifest = manifest.with_columns({n: _for_all(values, is_train) for n, values in scored.columns.items()})
    s = manifest.column("difficulty")[is_train]
    if not np.isfinite(s).any():
        raise UsageError(
            f"none of the {len(s)} training images got a score",
            "give classes at least two different images each, or another column: dcdm score --column NAME",
        )
    counts = {"scored": int(np.isfinite(s).sum()), "difficulty_mean": float(np.nanmean(s))}
    return _Scores(manifest, scored.results | counts | known, scored.save_scorer)


def _known(session: Session, train: Manifest, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the scorer knows; nothing where scores are a column of the source. Raises NumericalError for guessing."""
    from dcdm_cli.difficulty.competence import SCORER, competence, competence_sentence, guard, maybe_seen

    if "predicted" not in columns:
        return {}
    found = competence(columns["predicted"], train.column("label").astype("int64"), train.class_names)
    if session.config.score.classifier:
        found = maybe_seen(found)
    guard(SCORER, found, session.config.score.at_chance, session.console.warn)
    session.console.note(competence_sentence(SCORER, found))
    return {"competence": found}


def _for_all(values: np.ndarray, is_train: np.ndarray) -> pa.Array:
    """A column of the training images as one of all images: null elsewhere, and for NaN."""
    import numpy as np
    import pyarrow as pa

    whole = np.zeros(len(is_train), values.dtype)
    whole[is_train] = values
    missing = ~is_train
    if values.dtype.kind == "f":
        missing |= np.isnan(whole)
    return pa.array(whole, mask=missing)


def _figures(run: RunFolder, manifest: Manifest) -> list[Path]:
    import numpy as np

    from dcdm_cli.reports.plots import difficulty_histogram, image_grid

    train = manifest.split("train")
    s, labels = train.column("difficulty"), train.column("label")
    run.figures.mkdir(exist_ok=True)
    made = [difficulty_histogram(run.figures / "difficulty.png", s, labels, manifest.class_names)]
    order = np.argsort(np.where(np.isfinite(s), s, -1), kind="stable")
    known = order[np.isfinite(s[order])]
    for name, chosen in {"hardest": known[::-1][:40], "easiest": known[:40]}.items():
        title = f"{name.capitalize()} training images: difficulty and class"
        made.append(image_grid(run.figures / f"{name}.png", grid_rows(train.select(chosen), 10), title))
    return made


def grid_rows(manifest: Manifest, width: int) -> list[Any]:
    """Rows of an image grid with difficulty and class under each image."""
    from dcdm_cli.data.images import decode_image
    from dcdm_cli.reports.plots import GridRow

    paths, names, s = manifest.paths(), manifest.column("class_name"), manifest.column("difficulty")
    return [
        GridRow(
            title="",
            images=[decode_image(path) for path in paths[start : start + width]],
            captions=[
                f"{d:.2f} {n}" for d, n in zip(s[start : start + width], names[start : start + width], strict=True)
            ],
        )
        for start in range(0, len(paths), width)
    ]


def scan_options(session: Session, source: str) -> ScanOptions:
    from dcdm_cli.data.candidates import ScanOptions
    from dcdm_cli.data.split_names import read_split_map

    data, score = session.config.data, session.config.score
    out_of_fold = score.method in ("auto", "features", "crossfit") and not (score.classifier or score.column)
    # the map is read from its text; all others are taken as they are set
    shared = ({option.name for option in fields(ScanOptions)} & type(data).model_fields.keys()) - {"split_map"}
    return ScanOptions(
        **{name: getattr(data, name) for name in shared},
        split_map=read_split_map(data.split_map),
        min_train=2 if out_of_fold else 1,  # an image is scored by classifiers that know its class from others
        score_column=score.column,
        standard_input=_read_standard_input() if source == "-" else None,
    )


def _read_standard_input() -> bytes:
    # at a terminal, reading would wait for somebody to type
    if sys.stdin.isatty():
        raise UsageError("no manifest on standard input", "pipe one: dcdm score - < images.csv")
    return sys.stdin.buffer.read()


def _fingerprint(source: str, options: ScanOptions) -> str:
    from dcdm_cli.data.digits import is_digits
    from dcdm_cli.data.sources import fingerprint

    # the digits are in the package: their name says which they are and how many
    return hash_json(source) if is_digits(source) else fingerprint(source, options)


def _file_inputs(config: Config) -> dict[str, str]:
    """Contents of the files that settings name: class map, corrections, and a classifier with what stands beside it."""
    from dcdm_cli.difficulty.own_files import classifier_files

    own, lists = config.score.classifier, (config.data.class_map, config.data.drop, config.data.relabel)
    files = [*(classifier_files(own) if own else []), *(file for file in lists if file)]
    return {str(file): hash_file(file) for file in files if file.is_file()}
