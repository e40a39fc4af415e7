"""Figures and pages of an evaluation and of experiments."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.reports import experiment_plots, plots
from dcdm_cli.reports.html import Extras, ReportFigure, write_page, write_report
from dcdm_cli.reports.strength import strength_curves, strength_table
from dcdm_cli.run.versions import recorded_versions
from dcdm_cli.stages.known import scorer_known, scorer_words

MOST_SHEETS = 4  # of images drawn during training
MOST_PICTURES = 160  # of generated images in the page; a page of a few megabytes opens on a phone

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.reports.advice import Advice
    from dcdm_cli.reports.gallery import PictureGallery
    from dcdm_cli.run.session import Session
    from dcdm_cli.run.store import RunFolder


def write_evaluation_report(session: Session, manifest: Manifest, metrics: Mapping[str, Any]) -> list[Path]:
    """Returns the files made, report.html first."""
    figures = _figures(session, manifest, metrics)
    report = session.run.evaluation / "report.html"
    config, span = session.config, session.config.generate.guidance_span
    text = config.generate.text_guidance if span is None else f"{span[0]:g} to {span[1]:g}"
    facts = {
        "run": session.run.path.name,
        "base model": Path(config.finetune.base).name,
        "classes": str(len(manifest.class_names)),
        "real training images": str(len(manifest.split("train"))),
        "scorer": f"{config.score.model}, {config.score.method}",
        "sampler": f"{config.generate.scheduler}, {config.generate.steps} steps, guidance "
        f"{text} (text) and {config.generate.difficulty_guidance} (difficulty)"
        + (", distilled into one call" if config.generate.guidance == "distilled" else "")
        + (f", from real images at strength {config.generate.strength:g}" if config.generate.strength < 1 else ""),
        "device": str(metrics["device"]),
    }
    write_report(report, metrics, figures, facts, extras=_extras(session, manifest, metrics))
    return [report, *(figure.path for figure in figures)]


def _extras(session: Session, manifest: Manifest, metrics: Mapping[str, Any]) -> Extras:
    chosen = strength_choice(session.run)
    tables = [strength_table(chosen, scorer_words(session.run))] if chosen else []
    return Extras(how_made(), run_advice(session, metrics), _gallery(session.run, manifest), tables)


def run_advice(session: Session, metrics: Mapping[str, Any]) -> list[Advice]:
    """What to do now, with commands that name this run."""
    from dcdm_cli.reports.advice import about_run, advice
    from dcdm_cli.run.standing import run_words
    from dcdm_cli.stages.first_look import full_size_advice

    found = advice(metrics, _experiments(session.run), strength_chosen=strength_choice(session.run) is not None)
    found = about_run(found, run_words(session.run), _taken_names(session.run))
    images = (metrics.get("quality") or {}).get("images") or 0
    return [*found, *(full_size_advice(session, images) if found else [])]


def _taken_names(run: RunFolder) -> list[str]:
    """Of the generated sets that were begun or finished, "" for the one without a name."""
    return [name for name in ("", *run.set_names()) if run.with_images(name).generated.exists()]


def how_made() -> dict[str, str]:
    """When a page was made, with what, and by which command where there was one."""
    # in a notebook, or a program that uses `Run`, the command line is not ours to quote
    program = Path(sys.argv[0])
    ours = program.stem == "dcdm" or program.parent.name == "dcdm_cli"  # python -m dcdm_cli
    typed = {"command": shlex.join(["dcdm", *sys.argv[1:]])} if ours else {}
    packages = ", ".join(f"{name} {version}" for name, version in recorded_versions().items())
    return {"made on": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "with": packages, **typed}


def strength_choice(run: RunFolder) -> dict[str, Any] | None:
    """How fine-tuning chose its strength; None where it was told."""
    record = run.record("finetune")
    return record.results.get("strength") if record else None


def strength_lines(run: RunFolder, results: Mapping[str, Any]) -> list[RenderableType]:
    """The points that fine-tuning probed, for the screen and as a CSV file of the run; nothing where it was told."""
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables

    chosen = results.get("strength")
    return shown(saved_tables([strength_table(chosen, scorer_words(run))], run.tables)) if chosen else []


def _experiments(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Documents of the experiments that advice is taken from, as far as they were run."""
    found = {}
    for name in ("mean-sweep", "ratio-sweep"):
        file = ExperimentFiles(run.evaluation, name).document
        record = run.record(f"evaluate-{name}")
        # an experiment with another adapter says nothing of this one's images
        if record and record.inputs.get("finetune") == run.require("finetune").id and file.is_file():
            found[name] = record.results  # the document, as the record's gate has let it through
    return found


def _gallery(run: RunFolder, manifest: Manifest) -> PictureGallery | None:
    """Generated images and, beside them, half as many real ones; None before there are generated ones."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.reports.gallery import PictureGallery, pictures

    file = run.generated / "samples.parquet"
    if not file.is_file():
        return None
    made = pictures(read_manifest(file, made_by="dcdm generate"), MOST_PICTURES)
    return PictureGallery([*made, *pictures(manifest.split("train"), MOST_PICTURES // 2)]) if made else None


def prompt_lines(tables: Path, results: Mapping[str, Any]) -> list[RenderableType]:
    """What prompts of several sources cost, for the screen, and as a CSV file; nothing where all are of one."""
    if not results.get("prompt_sources"):
        return []
    from dcdm_cli.reports.quality_tables import prompt_table
    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables

    return shown(saved_tables([prompt_table(results["prompt_sources"])], tables))


def generated_lines(run: RunFolder, results: Mapping[str, Any]) -> list[RenderableType]:
    """What came out, for the screen, and what prompts of several sources cost."""
    from dcdm_cli.reports.formatting import generated_sentence
    from dcdm_cli.reports.table import sentence

    known = scorer_known(run).get("scorer")
    tables = run.tables / "-".join(filter(None, ("generated", run.images_name)))  # each set's are its own
    return [sentence(generated_sentence(results, known)), *prompt_lines(tables, results)]


@dataclass(frozen=True)
class ExperimentFiles:
    """Where an experiment's results go, by the experiment's name made safe."""

    folder: Path
    name: str

    document = property(lambda self: self.folder / f"{self.name}.json")
    page = property(lambda self: self.folder / f"{self.name}.html")
    figures = property(lambda self: self.folder / self.name)


def write_experiment_report(
    files: ExperimentFiles, document: Mapping[str, Any], made: Mapping[str, str] | None = None
) -> list[Path]:
    """Page and figures of an experiment's document; from the document alone, so that they can be made again. made: as
    `how_made` says it, where the document was made just now."""
    from dcdm_cli.reports.experiment_tables import experiment_sentences, experiment_tables

    figures = draw(experiment_drawings(document), files.figures)
    title = f"Experiment {document['experiment']}: {document['about']}" if document["about"] else document["experiment"]
    facts = {"device": document["device"], "tested on": document["tested_on"]}
    sentences = [*experiment_sentences(document), *document["warnings"]]
    write_page(files.page, title, sentences, figures, experiment_tables(document), facts, extras=Extras(made or {}))
    return [files.page, *(figure.path for figure in figures)]


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: file name, title, what to read in it, and how."""

    name: str
    title: str
    text: str
    draw: Callable[[Path], Path]


def draw(drawings: Sequence[Drawing], folder: Path) -> list[ReportFigure]:
    folder.mkdir(parents=True, exist_ok=True)
    return [ReportFigure(drawing.title, drawing.draw(folder / drawing.name), drawing.text) for drawing in drawings]


def experiment_drawings(document: Mapping[str, Any]) -> list[Drawing]:
    """From an experiment's document alone."""
    if document["kind"] == "adherence":
        return _steering_drawings(document)
    made = []
    if document["axis"] == "difficulty":
        text = "Bars are 95 % intervals over the seeds."
        made.append(
            Drawing("sweep.png", "Difficulty", text, lambda path: experiment_plots.difficulty_sweep(path, document))
        )
    if document["axis"] == "ratio":
        text = "Below each ratio: what generating the images of each arm takes."
        made.append(
            Drawing("ratio.png", "Number of images", text, lambda path: experiment_plots.ratio_sweep(path, document))
        )
    baseline = next((pair["against"] for cell in document["cells"] for pair in cell["paired"]), None)
    if baseline is not None:
        text = "Green is better, orange worse, grey cannot be told."
        made.append(
            Drawing(
                "differences.png",
                "Differences",
                text,
                lambda path: experiment_plots.differences(path, document, baseline),
            )
        )
    return made


def evaluation_drawings(metrics: Mapping[str, Any], curve: Mapping[str, Any] | None = None) -> list[Drawing]:
    """From metrics.json alone. curve: the calibration, if it is to be drawn."""
    adherence, downstream = metrics["adherence"], metrics.get("downstream")
    drawings = [
        Drawing(
            "adherence.png",
            "Requested and realised difficulty",
            "Dots on the diagonal mean that what is asked for is what comes out.",
            lambda path: plots.requested_vs_realised(path, adherence, curve),
        ),
    ]
    if adherence.get("frontier"):
        text = "Where generated images keep their label as often as equally hard real ones, they are hard, not wrong."
        drawings.append(Drawing("frontier.png", "Label frontier", text, lambda path: plots.frontier(path, adherence)))
    if downstream:
        text = "Same optimiser steps in every arm; test images that nothing was trained on."
        title = "What the images are worth"
        drawings.append(Drawing("accuracy.png", title, text, lambda path: plots.accuracy_bars(path, downstream)))
    return drawings


def _steering_drawings(document: Mapping[str, Any]) -> list[Drawing]:
    before, after = document["adherence"]["uncalibrated"], document["adherence"]["calibrated"]
    same = "Same scorer for all; plain LoRA is what fine-tuning gives without difficulty."
    return [
        Drawing("densities.png", "Densities", same, lambda path: experiment_plots.densities(path, document)),
        Drawing("uncalibrated.png", "Before calibration", "", lambda path: plots.requested_vs_realised(path, before)),
        Drawing("calibrated.png", "After calibration", "", lambda path: plots.requested_vs_realised(path, after)),
        Drawing("classes.png", "By class", "", lambda path: experiment_plots.classes(path, after["classes"])),
    ]


def _figures(session: Session, manifest: Manifest, metrics: Mapping[str, Any]) -> list[ReportFigure]:
    from dcdm_cli.stages.probe import usable_calibration

    folder, train = session.run.evaluation / "figures", manifest.split("train")
    calibration = usable_calibration(session)
    s, labels, names = train.column("difficulty"), train.column("label"), train.class_names
    real = "Out-of-fold: 1 minus the probability of the true class."
    steering, *others = draw(evaluation_drawings(metrics, asdict(calibration) if calibration else None), folder)
    drawings = [
        Drawing("classes.png", "Classes", "", lambda p: experiment_plots.classes(p, metrics["adherence"]["classes"])),
        Drawing(
            "difficulty.png",
            "Difficulty of the real training images",
            real,
            lambda path: plots.difficulty_histogram(path, s, labels, names),
        ),
        Drawing("cost.png", "Cost", "", lambda path: experiment_plots.cost_bars(path, metrics["cost"])),
        Drawing("seconds.png", "Time", "Per stage.", lambda path: plots.stage_seconds(path, metrics["seconds"])),
    ]
    if chosen := strength_choice(session.run):
        text = "What changes as training goes on; the ring is the point that was chosen, by what is asked of it."
        drawings.append(Drawing("strength.png", "How far to fine-tune", text, lambda p: strength_curves(p, chosen)))
    drawings += _losses(session.run)
    text = "Each row is a class; the number is the difficulty the scorer finds."
    atlas = ReportFigure("Difficulty atlas", folder / "atlas.png", text)
    return [atlas, steering, *others, *draw(drawings, folder), *sample_sheets(session.run)]


def _losses(run: RunFolder) -> list[Drawing]:
    from dcdm_cli.stages.watching import draw_losses

    # from the record: figures are for people, who may have changed or removed them
    record = run.record("finetune")
    if record is None or not record.results.get("losses"):
        return []
    text = "Loss over the optimiser steps of fine-tuning."
    return [Drawing("losses.png", "Training", text, lambda path: draw_losses(path, record.results))]


def sample_sheets(run: RunFolder) -> list[ReportFigure]:
    """What fine-tuning drew on its way for `--sample-every`: the first sheet and the last ones."""
    sheets = sorted((run.figures / "samples" / run.adapter.name).glob("step-*.png"))
    kept = sheets if len(sheets) <= MOST_SHEETS else [sheets[0], *sheets[1 - MOST_SHEETS :]]
    text = "Each row is a class and starts from the same noise; above each image the difficulty asked for."
    return [ReportFigure(f"After {int(file.stem.removeprefix('step-'))} steps", file, text) for file in kept]
