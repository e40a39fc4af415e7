"""`dcdm score`: scan the source, score every training image, keep the scorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.console import Console
from dcdm_cli.errors import ExitCode, UsageError
from dcdm_cli.files import hash_json, hash_tree
from dcdm_cli.job import Job
from dcdm_cli.store import Outcome, RunFolder, Stage, StageRecord, write_starter_config

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

EXAMPLES = (
    "dcdm score photos/ --run birds --model resnet50 --steps 5000",
    "dcdm score hf:uoft-cs/cifar10 --image-column img",
    "dcdm score digits --preset digits",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "score", help=summary, sections=("score", "data"), examples=EXAMPLES)
    def score(
        context: Context,
        source: Annotated[
            str | None,
            typer.Argument(help="Class folder, hf:owner/name@revision, Parquet, CSV/JSONL manifest, - or digits."),
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
        record, done = run.run(stage, lambda: _work(context, place), force=context.force)
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


def _work(context: Context, source: str) -> Outcome:
    from dcdm_cli.data.manifest import write_manifest
    from dcdm_cli.data.sources import TooManyRejectedError, scan
    from dcdm_cli.data.writers import write_rejected

    run, job = context.run, context.job()
    try:
        found = scan(source, scan_options(context), run.images)
    except TooManyRejectedError as error:
        write_rejected(run.rejected, error.rejected)
        raise
    for warning in found.warnings:
        context.console.warn(warning)
    write_rejected(run.rejected, found.rejected)
    manifest, results = _score(context, found.manifest, job)
    write_manifest(manifest, run.samples)
    results |= {"images": len(manifest), "rejected": len(found.rejected), "classes": len(manifest.class_names)}
    results["origin"] = found.origin
    outputs = [run.samples, *([run.scorer] if run.scorer.exists() else []), *_figures(run, manifest)]
    fingerprint = hash_json([manifest.column("sample_id").tolist(), manifest.column("difficulty").tolist()])
    return Outcome(outputs, fingerprint, results, job.device)


def _score(context: Context, manifest: Manifest, job: Job) -> tuple[Manifest, dict[str, Any]]:
    """Fills the score columns of the training split; other splits keep nulls."""
    import numpy as np

    columns, results = _columns(context, manifest, job)
    rows = np.flatnonzero(manifest.column("split") == "train")
    for name, values in columns.items():
        whole = manifest.table[name].to_pylist()
        for row, value in zip(rows, values, strict=True):
            whole[row] = value
        manifest = manifest.with_columns({name: whole})
    train = manifest.split("train").column("difficulty")
    return manifest, results | {"scored": int(np.isfinite(train).sum()), "difficulty_mean": float(np.nanmean(train))}


def _columns(context: Context, manifest: Manifest, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    from dcdm_cli.difficulty.crossfit import crossfit
    from dcdm_cli.difficulty.own_classifier import load_own_classifier, score_with
    from dcdm_cli.difficulty.scorer import save_own_scorer, save_scorer

    config, scorer, train = context.config.score, context.run.scorer, manifest.split("train")
    if config.method == "column":
        return {}, {"method": "column"}
    if config.method == "classifier" or config.classifier is not None:
        if config.classifier is None:
            raise UsageError(
                "--method classifier needs the classifier", "name it with --classifier FILE.safetensors|FILE.onnx"
            )
        names = manifest.class_names
        class_map = names if context.config.data.class_map else None
        own = load_own_classifier(config.classifier, names, config, job.device, class_map=class_map)
        scored = score_with(own, train, job.device, calibrate=config.temperature, progress=job.progress)
        save_own_scorer(scorer, own, scored.temperature)
        return scored.columns, {"method": "classifier", "accuracy": scored.accuracy, "temperature": scored.temperature}
    fitted = crossfit(train, config, job.device, job.progress)
    save_scorer(scorer, fitted, manifest.class_names, config)
    suspects = int(fitted.columns["suspect_label"].sum())
    results = {"method": "crossfit", "accuracy": fitted.accuracy, "temperature": fitted.temperature}
    return fitted.columns, results | {"suspects": suspects, "folds": len(fitted.models)}


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
    path = Path(source.removeprefix("hf:"))
    if path.is_file():
        return hash_json([source, path.stat().st_size, path.stat().st_mtime_ns])
    if path.is_dir():
        files = sorted((str(p.relative_to(path)), p.stat()) for p in path.rglob("*") if p.is_file())
        return hash_json([source, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]])
    return hash_json(source)


def _classifier_input(classifier: Path | None) -> dict[str, str]:
    return {"classifier": hash_tree(classifier)} if classifier and classifier.is_file() else {}
