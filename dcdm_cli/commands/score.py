"""`dcdm score`: scan the source, score every training image, keep the scorer."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.commands.spread import open_crew, settle_spread
from dcdm_cli.console import Console
from dcdm_cli.errors import ExitCode, UsageError
from dcdm_cli.files import hash_bytes, hash_json, hash_tree
from dcdm_cli.job import Job
from dcdm_cli.store import Outcome, RunFolder, Stage, StageRecord, write_starter_config

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

EXAMPLES = (
    "dcdm score photos/ --run birds --model resnet50 --steps 5000",
    "dcdm score hf:uoft-cs/cifar10 --image-column img",
    "dcdm score 'shards/train-{00000..00127}.tar' --run birds --class-map classes.json --devices all",
    "dcdm score digits --preset digits",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "score", help=summary, sections=("score", "data", "scale"), examples=EXAMPLES)
    def score(
        context: Context,
        source: Annotated[
            str | None,
            typer.Argument(
                help="Class folder, tars, Parquet, hf:owner/name@revision, CSV/JSONL manifest, - or digits."
            ),
        ] = None,
    ) -> None:
        record = run_score(context, source)
        show_score(context, record)
        if record.results["rejected"]:
            raise typer.Exit(ExitCode.PARTIAL)


def run_score(context: Context, source: str | None = None) -> StageRecord:
    """Scans and scores unless nothing changed. Raises UsageError without a source."""
    config, run = context.config, context.run
    source = source or config.data.source
    if not source:
        raise UsageError("no images to score", "name them: dcdm score FOLDER (or hf:owner/name, a CSV, digits)")
    run.create()
    write_starter_config(run, config.preset, {"data.source": source, **context.given})
    with run.lock("dcdm score"):
        place = _prepare(source, context)
        settings = {"source": source, "data": config.data.model_dump(mode="json", exclude={"source"})}
        settings |= {"score": config.score.model_dump(mode="json"), "seed": config.seed}
        stage = Stage("score", settings, {"source": _fingerprint(place)} | _classifier_input(config.score.classifier))
        record, done = run.run(stage, lambda: _work(context, place, stage), force=context.force)
    if not done:
        context.console.note("score: nothing changed, skipped (--force runs it again)")
    return record


def show_score(context: Context, record: StageRecord) -> None:
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.reports.tables import score_table

    manifest = read_manifest(context.run.samples)
    shown = [] if _machine(context.console) else [score_table(manifest.split("train"))]
    context.console.result(
        {"stage": "score", "path": str(context.run.samples), **record.results}, context.run.samples, shown
    )


def _machine(console: Console) -> bool:
    return console.as_json or console.quiet


def _prepare(source: str, context: Context) -> str:
    """The source as `scan` knows it: the embedded digits become a folder of images."""
    from dcdm_cli.demo.digits import SOURCE_NAME, write_digits

    return str(write_digits(context.run.images / SOURCE_NAME)) if source == SOURCE_NAME else source


def _work(context: Context, source: str, stage: Stage) -> Outcome:
    from dcdm_cli.data.manifest import write_manifest
    from dcdm_cli.data.sources import TooManyRejectedError, scan_on_disk
    from dcdm_cli.data.writers import write_rejected

    run, job = context.run, context.job()
    spool, key = _spool(context, stage), "" if source == "-" else hash_json([stage.config, stage.inputs])
    try:
        found = scan_on_disk(source, scan_options(context), run.images, spool / "scan", key, job)
    except TooManyRejectedError as error:
        write_rejected(run.rejected, error.rejected)
        raise
    for warning in found.warnings:
        context.console.warn(warning)
    write_rejected(run.rejected, found.rejected)
    manifest, results = _score(context, found.manifest, job, spool)
    write_manifest(manifest, run.samples)
    results |= {"images": len(manifest), "rejected": len(found.rejected), "classes": len(manifest.class_names)}
    results["origin"] = found.origin
    outputs = [run.samples, *([run.scorer] if run.scorer.exists() else []), *_figures(run, manifest)]
    shutil.rmtree(spool, ignore_errors=True)
    return Outcome(outputs, _scores_hash(manifest), results, job.device)


def _scores_hash(manifest: Manifest) -> str:
    digests = []
    for batch in manifest.table.select(["sample_id", "difficulty"]).to_batches(65_536):
        ids, difficulty = batch.columns
        digests.append(hash_bytes("\n".join(ids.to_pylist()).encode(), difficulty.fill_null(-1).to_numpy().tobytes()))
    return hash_json(digests)


def _spool(context: Context, stage: Stage) -> Path:
    """Where a stopped run goes on; what was left by runs with other settings is dropped."""
    spool = context.run.cache / f"score-{hash_json([stage.config, stage.inputs])[:16]}"
    for old in context.run.cache.glob("score-*"):
        if old != spool or context.force:
            shutil.rmtree(old, ignore_errors=True)
    return spool


def _score(context: Context, manifest: Manifest, job: Job, spool: Path) -> tuple[Manifest, dict[str, Any]]:
    """Fills the score columns of the training split; other splits keep nulls."""
    import numpy as np
    import pyarrow as pa

    from dcdm_cli.difficulty.scoring import Scoring, score_images

    is_train = np.asarray(manifest.table["split"].to_numpy(zero_copy_only=False) == "train")
    train = manifest.select(is_train)
    spread = settle_spread(context)
    place = Scoring(
        context.run.scorer,
        spool,
        class_map=manifest.class_names if context.config.data.class_map else None,
        crew=(lambda open_worker: open_crew(context, open_worker, spread, job)) if spread else None,
        threads=spread.threads,
    )
    columns, results = score_images(train, context.config.score, place, job)
    scored = {}
    for name, values in columns.items():
        whole = np.zeros(len(manifest), values.dtype)
        whole[is_train] = values
        missing = ~is_train
        if values.dtype.kind == "f":
            missing |= np.isnan(whole)
        scored[name] = pa.array(whole, mask=missing)
    manifest = manifest.with_columns(scored)
    difficulty = manifest.column("difficulty")[is_train]
    counts = {"scored": int(np.isfinite(difficulty).sum()), "difficulty_mean": float(np.nanmean(difficulty))}
    return manifest, results | counts


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


def scan_options(context: Context) -> Any:
    from dcdm_cli.data.images import decode_options
    from dcdm_cli.data.sources import ScanOptions

    data = context.config.data
    shared = (
        "split",
        "image_column",
        "label_column",
        "caption_column",
        "follow_links",
        "class_map",
        "judge_fraction",
        "test_fraction",
        "max_bad",
        "strict",
    )
    return ScanOptions(
        **{name: getattr(data, name) for name in shared},
        score_column=context.config.score.column,
        decode=decode_options(),
    )


def _fingerprint(source: str) -> str:
    """Names, sizes and times of local files; anything else is known by its name."""
    import hashlib

    from dcdm_cli.data.tar_listing import expand_braces

    path, digest = Path(source.removeprefix("hf:")), hashlib.sha256(source.encode())
    names = [str(path)] if path.exists() else [f for p in expand_braces(str(path)) for f in sorted(glob.glob(p))]
    for name, stat in _files(names):
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _files(names: Iterable[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files, those of folders in the order of their names; no list of them all is ever made."""
    for name in names:
        if os.path.isfile(name):
            yield name, os.stat(name)
        elif os.path.isdir(name) and not os.path.islink(name):
            with os.scandir(name) as entries:
                inside = sorted(entry.path for entry in entries)
            yield from _files(inside)


def _classifier_input(classifier: Path | None) -> dict[str, str]:
    return {"classifier": hash_tree(classifier)} if classifier and classifier.is_file() else {}
