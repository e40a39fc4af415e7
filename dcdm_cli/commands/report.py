"""Figures and report.html of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dcdm_cli.data.images import decode_image
from dcdm_cli.reports import plots
from dcdm_cli.reports.html import ReportFigure, write_report

if TYPE_CHECKING:
    from dcdm_cli.commands.options import Context
    from dcdm_cli.commands.probing import Probed
    from dcdm_cli.data.manifest import Manifest

GRID_CLASSES = 12


def write_evaluation_report(
    context: Context, manifest: Manifest, probed: Probed, metrics: Mapping[str, Any]
) -> list[Path]:
    """Returns the files made, report.html first."""
    figures = _figures(context, manifest, probed, metrics)
    report = context.run.evaluation / "report.html"
    config = context.config
    facts = {
        "run": context.run.path.name,
        "base model": Path(config.finetune.base).name,
        "classes": str(len(manifest.class_names)),
        "real training images": str(len(manifest.split("train"))),
        "scorer": f"{config.score.model}, {config.score.method}",
        "sampler": f"{config.generate.scheduler}, {config.generate.steps} steps, guidance "
        f"{config.generate.text_guidance} (text) and {config.generate.difficulty_guidance} (difficulty)",
        "device": str(metrics["device"]),
    }
    write_report(report, metrics, figures, facts)
    return [report, *(figure.path for figure in figures)]


def _figures(context: Context, manifest: Manifest, probed: Probed, metrics: Mapping[str, Any]) -> list[ReportFigure]:
    from dcdm_cli.commands.probing import usable_calibration

    folder, train = context.run.evaluation / "figures", manifest.split("train")
    folder.mkdir(parents=True, exist_ok=True)
    calibration = usable_calibration(context)
    curve = asdict(calibration) if calibration else None
    adherence, downstream = metrics["adherence"], metrics["downstream"]
    s, labels = train.column("difficulty"), train.column("label")
    atlas = plots.image_grid(
        folder / "atlas.png", atlas_rows(train, probed), "Class by difficulty: real easiest, generated, real hardest"
    )
    return [
        ReportFigure("Difficulty atlas", atlas, "Each row is a class; the number is the difficulty the scorer finds."),
        ReportFigure(
            "Requested and realised difficulty",
            plots.requested_vs_realised(folder / "adherence.png", adherence, curve),
            "Dots on the diagonal mean that what is asked for is what comes out.",
        ),
        ReportFigure(
            "Label frontier",
            plots.frontier(folder / "frontier.png", adherence),
            "Where generated images keep their label as often as equally hard real ones, they are hard, not wrong.",
        ),
        ReportFigure(
            "What the images are worth",
            plots.accuracy_bars(folder / "accuracy.png", downstream),
            "Same optimiser steps in every arm; test images that nothing was trained on.",
        ),
        ReportFigure(
            "Difficulty of the real training images",
            plots.difficulty_histogram(folder / "difficulty.png", s, labels, train.class_names),
            "Out-of-fold: 1 minus the probability of the true class.",
        ),
        ReportFigure("Time", plots.stage_seconds(folder / "seconds.png", metrics["seconds"]), "Seconds per stage."),
    ]


def atlas_rows(train: Manifest, probed: Probed) -> list[plots.GridRow]:
    """Per class: the easiest real image, generated ones at each target, the hardest real one."""
    labels, s, paths = train.column("label"), train.column("difficulty"), train.paths()
    rows = []
    for label, name in list(enumerate(train.class_names))[:GRID_CLASSES]:
        mine = np.flatnonzero((labels == label) & np.isfinite(s))
        if not len(mine):
            continue
        easiest, hardest = mine[s[mine].argmin()], mine[s[mine].argmax()]
        at = [_nearest(probed, label, target) for target in np.unique(probed.target)]
        shown = [i for i in at if i is not None]
        images = [
            decode_image(paths[easiest]),
            *(Image.fromarray(probed.images[i]) for i in shown),
            decode_image(paths[hardest]),
        ]
        captions = [f"real {s[easiest]:.2f}", *(f"{probed.realised[i]:.2f}" for i in shown), f"real {s[hardest]:.2f}"]
        rows.append(plots.GridRow(title=name, images=images, captions=captions))
    return rows


def _nearest(probed: Probed, label: int, target: float) -> int | None:
    """The class's image for this target whose realised difficulty comes closest to it; few images leave classes out."""
    mine = np.flatnonzero((probed.label == label) & (probed.target == target))
    if not len(mine):
        return None
    return int(mine[np.abs(probed.realised[mine] - target).argmin()])
