"""Images to look at: a table that `dcdm score --drop` and `--relabel` take back, and a page with thumbnails."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import NotFoundError
from dcdm_cli.run.session import Session
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import RunFolder
from dcdm_cli.safe_text import show
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.known import is_by_own_classifier, scorer_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.leakage import Looks
    from dcdm_cli.evaluation.review import Item
    from dcdm_cli.run.progress import Job

TABLE, PAGE = "review.csv", "review.html"
MOST_COMPARED = 10_000  # training images, each with all others: seconds, which grow with the square
ABOUT = (
    "Mark images with an x in the column drop of review.csv, or write their right class into new_label; then: "
    "{command}",
    "A suspect label is one that the scorer{unlearned} contradicts with confidence.",
    "Difficulty is 1 minus the probability that the scorer gives the label: 0 easy, 1 hard.",
)


def run_review(session: Session, most: int) -> dict[str, Any]:
    """Writes review/review.csv and review/review.html, at most `most` images of each group and set. A table that a
    person has filled in is kept beside the new one."""
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.evaluation.review import counted, real_items
    from dcdm_cli.reports.review import review_table, write_gallery, write_review_table
    from dcdm_cli.reports.tables import saved_tables

    run = session.run
    run.create(after="score")
    # thumbnails need no device, and settling one would import torch
    job = open_job(session, "cpu")
    with run.lock("dcdm review"):
        train = read_manifest(run.samples).split("train")
        items = real_items(train, most) + _looked_at(session, train, most, job)
        if kept := _keep_filled(run):
            session.console.note(f"the table that was filled in is kept: {kept}")
        write_review_table(run.review / TABLE, items)
        known, command = scorer_words(run), correcting_command(run)
        unlearned = "" if is_by_own_classifier(run) else ", which was not trained on the image,"
        about = [text.format(command=command, unlearned=unlearned) for text in ABOUT]
        write_gallery(run.review / PAGE, items, [*about, *([known] if known else [])])
        saved_tables([review_table(counted(items))], run.tables)
    if known:
        session.console.note(known)
    files = {"table": str(run.review / TABLE), "page": str(run.review / PAGE)}
    return {"stage": "review", "images": len(items), **counted(items), **files, "command": command}


def correcting_command(run: RunFolder) -> str:
    """What scores the run's source again as the table says, as it can be typed."""
    source, table = str(run.require("score").config.get("source") or "FOLDER"), str(run.review / TABLE)
    command = shlex.join(["dcdm", "score", source, "--drop", table, "--relabel", table])
    return f"{command}{run_words(run)}{' < images.csv' if source == '-' else ''}"


def review_lines(document: dict[str, Any]) -> list[RenderableType]:
    """For the screen, the command on a line of its own, which is not broken up. document: as `run_review` gives it."""
    from rich.text import Text

    from dcdm_cli.evaluation.review import GROUPS
    from dcdm_cli.reports.review import review_table
    from dcdm_cli.reports.table import shown

    table = review_table({group: document[group] for group in GROUPS})
    return [*shown([table]), Text(f"  {show(document['command'])}")]


def _looked_at(session: Session, train: Manifest, most: int, job: Job) -> list[Item]:
    """What generated images miss, and what only pictures tell: nearly equal training images, where they are not too
    many to be compared with each other, and those that generated ones repeat."""
    from dcdm_cli.evaluation.leakage import nearest_other
    from dcdm_cli.evaluation.review import missed, near_twins

    sets, few = list(_sets(session.run)), len(train) <= MOST_COMPARED
    found = [item for name, images in sets for item in missed(images, name, session.config.generate.tolerance, most)]
    if not few:
        session.console.note(f"more than {MOST_COMPARED:,} training images: nearly equal ones are not looked for")
    real = _look(session, train, job) if few or sets else None
    if real is None:
        return found
    twins = []
    if few:
        near = nearest_other(real)
        twins = near_twins(train, near.row, near.same, most)
    return twins + found + [item for name, images in sets for item in _copied(train, name, images, real, most, job)]


def _look(session: Session, train: Manifest, job: Job) -> Looks | None:
    """None, said, where training images are no longer there: what tables tell can be gone through without them."""
    from dcdm_cli.evaluation.leakage import look

    try:
        return look(train.paths(), job.progress)
    except NotFoundError as error:
        session.console.note(f"{error.message}: copies are not looked for")
        return None


def _copied(train: Manifest, source: str, images: Manifest, real: Looks, most: int, job: Job) -> list[Item]:
    """real: of the training images."""
    from dcdm_cli.evaluation.leakage import look, nearest
    from dcdm_cli.evaluation.review import copied

    near, paths = nearest(look(images.paths(), job.progress), real), train.paths()
    return copied(images, source, near.same, [paths[row] for row in near.row], most)


def _sets(run: RunFolder) -> Iterator[tuple[str, Manifest]]:
    """Generated images by their source, as `Item` has it."""
    from dcdm_cli.generation.finished import read_generated

    for name in ("", *run.set_names()):
        file = run.with_images(name).generated / "samples.parquet"
        images = read_generated(file.parent) if file.is_file() else None
        if images is not None and len(images):
            yield name or "generated", images


def _keep_filled(run: RunFolder) -> str:
    """The name under which a table with marks in it was set aside; "" when there was none."""
    from dcdm_cli.data.corrections import DROP, RELABEL, read_rows

    file = run.review / TABLE
    if not file.is_file():
        return ""
    if not any((row.get(DROP) or row.get(RELABEL) or "").strip() for row in read_rows(file)):
        return ""
    number = 1
    while (kept := run.review / f"review-{number}.csv").exists():
        number += 1
    file.rename(kept)
    return str(kept)
