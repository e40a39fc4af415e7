"""Executing a plan: render, save, journal, and at the end the folder that training loaders read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcdm_cli.data.manifest import Manifest, write_manifest
from dcdm_cli.data.writers import class_folders, metadata_rows, save_image, write_card, write_metadata
from dcdm_cli.errors import MismatchError
from dcdm_cli.files import storage_errors
from dcdm_cli.generation.engine import Engine
from dcdm_cli.generation.journal import Journal
from dcdm_cli.generation.plan import Plan, PlanRow, read_plan, write_plan
from dcdm_cli.generation.selection import Measure, render_close
from dcdm_cli.job import Job

SPLIT = "train"
FLAT_IMAGE = 1.0  # standard deviation in grey levels below which an image counts as blank


@dataclass(frozen=True)
class Generated:
    """manifest of the finished images; failed: blank ones, not written; made: rendered by this call, not resumed."""

    manifest: Manifest
    failed: int
    made: int


def run_plan(plan: Plan, engine: Engine, folder: Path, job: Job, measure: Measure | None = None) -> Generated:
    """Makes what is missing of `plan` in `folder`; the same call again continues or changes nothing.

    measure: (images uint8 [B,H,W,3], labels int64 [B]) -> (difficulty [B], predicted label [B]).
    Raises MismatchError when the folder holds another plan, InterruptedRunError when asked to stop.
    """
    _adopt(plan, folder)
    with storage_errors(folder):
        journal = Journal(folder)
    names = class_folders(engine.info.class_names)
    missing = [row for row in plan.rows() if row.sample_id not in journal.rows]
    for rows, images in render_close(engine, missing, job, measure):
        journal.append(_save_batch(rows, images, folder, names, engine, measure))
        job.stop_if_asked(f"{len(journal.rows)} of {len(plan)} images are finished")
    done = [journal.rows[row.sample_id] for row in plan.rows()]
    manifest = _publish(done, folder, engine)
    return Generated(manifest, failed=len(done) - len(manifest), made=len(missing))


def _adopt(plan: Plan, folder: Path) -> None:
    """Writes the plan, or checks that the one already there is the same."""
    file = folder / "plan.parquet"
    if not file.is_file():
        write_plan(plan, file)
    elif read_plan(file).hash != plan.hash:
        raise MismatchError(
            f"{folder} holds images of another plan",
            "run with --force to replace them, or choose another --run",
            file=file,
        )


def _save_batch(
    rows: Sequence[PlanRow],
    images: np.ndarray,
    folder: Path,
    names: Sequence[str],
    engine: Engine,
    measure: Measure | None,
) -> list[dict[str, Any]]:
    labels = np.array([row.label for row in rows])
    difficulty, predicted = measure(images, labels) if measure else (np.full(len(rows), np.nan), np.full(len(rows), -1))
    entries = []
    for row, image, s, guess in zip(rows, images, difficulty, predicted, strict=True):
        blank = float(image.std()) < FLAT_IMAGE
        path = f"{SPLIT}/{names[row.label]}/{row.sample_id}.{engine.config.image_format}"
        if not blank:
            save_image(Image.fromarray(image), folder / path)
        known = bool(np.isfinite(s))
        entries.append(
            {
                **{k: v for k, v in asdict(row).items() if k != "index"},
                "path": None if blank else path,
                "width": image.shape[1],
                "height": image.shape[0],
                "measured_difficulty": float(s) if known else None,
                "predicted": int(guess) if known else None,
            }
        )
    return entries


def _publish(entries: Sequence[dict[str, Any]], folder: Path, engine: Engine) -> Manifest:
    """The projections of the journal that other tools read."""
    rows = [
        {
            **entry,
            "prompt": entry["caption"],
            "split": SPLIT,
            "synthetic": True,
            "difficulty": entry["measured_difficulty"],
            "generator": engine.generator,
        }
        for entry in entries
        if entry["path"] is not None
    ]
    manifest = Manifest.from_rows(rows, engine.info.class_names, folder)
    write_manifest(manifest, folder / "samples.parquet")
    write_metadata(folder / SPLIT, metadata_rows(manifest, folder / SPLIT))
    facts = {"base model": engine.info.base, "generator": engine.generator, "backend": engine.denoiser.name}
    write_card(folder, engine.info.class_names, facts)
    return manifest
