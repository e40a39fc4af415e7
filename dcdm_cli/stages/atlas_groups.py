"""For the atlas: what makes images of a class hard, as groups of alike images, real and generated side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.arrays import evenly
from dcdm_cli.reports.atlas_tables import taken_for
from dcdm_cli.reports.formatting import number
from dcdm_cli.stages.quality import difficulty_of

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.clusters import Placed
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.evaluation.features import Space
    from dcdm_cli.reports.atlas import Strip
    from dcdm_cli.run.progress import Job
    from dcdm_cli.run.session import Session

MOST_PER_CLASS = 200  # images of a class that are grouped


def groups_of(
    session: Session, data: Evaluated, images: Manifest | None, chosen: Sequence[int], space: Space, job: Job
) -> tuple[list[dict[str, Any]], dict[str, list[Strip]]]:
    """(rows of `hard_groups` with the name of the space, class -> strips of its groups' typical pictures). Of
    the chosen classes; real training images, and `images`, the run's generated ones where there are any."""
    from dcdm_cli.evaluation.clusters import hard_groups

    real = _of_classes(data.real, chosen)
    made = None if images is None else _of_classes(images, chosen)
    placed = _placed(real, real.column("difficulty"), space)
    theirs = None
    if made is not None and len(made):
        theirs = _placed(made, difficulty_of(session, made, job), space)
    rows = hard_groups(placed, data.real.class_names, theirs, seed=session.config.evaluate.seed + session.config.seed)
    strips: dict[str, list[Strip]] = {}
    for row in rows:
        strips.setdefault(row["class"], []).extend(_strips(row, real, made))
    named = [{**row, "real": _named(row["real"], real), "generated": _named(row["generated"], made)} for row in rows]
    return [{"features": space.name, **row} for row in named], strips


def _of_classes(images: Manifest, chosen: Sequence[int]) -> Manifest:
    """At most `MOST_PER_CLASS` of each, spread evenly."""
    labels, rows = images.column("label"), []
    for label in chosen:
        mine = np.flatnonzero(labels == label)
        rows.append(mine[evenly(len(mine), MOST_PER_CLASS)])
    return images.select(np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64))


def _placed(images: Manifest, difficulty: np.ndarray, space: Space) -> Placed:
    from dcdm_cli.evaluation.clusters import Placed

    labels, predicted = (images.column(name).astype(np.int64) for name in ("label", "predicted"))
    return Placed(space.of(images), labels, difficulty, predicted)


def _strips(row: Mapping[str, Any], real: Manifest, made: Manifest | None) -> Iterator[Strip]:
    from dcdm_cli.data.images import decode_image
    from dcdm_cli.reports.atlas import Strip, Tile

    for kind, images in (("real", real), ("generated", made)):
        about = row[kind]
        if about is None or images is None:
            continue
        paths, difficulty = images.image_paths(), _difficulty(images)
        tiles = [
            Tile.of(decode_image(paths[i]), number(float(difficulty[i])) if np.isfinite(difficulty[i]) else "")
            for i in about["typical"]
        ]
        said = f"group {row['group'] + 1}, {kind}: {about['n']}, difficulty {number(about['difficulty'])}"
        yield Strip(", ".join(filter(None, (said, taken_for(about)))), tiles)


def _named(about: Mapping[str, Any] | None, images: Manifest | None) -> dict[str, Any] | None:
    """Row numbers of a selection mean nothing to a reader: sample ids do."""
    if about is None or images is None:
        return None
    samples = images.column("sample_id")
    return {**about, "typical": [str(samples[row]) for row in about["typical"]]}


def _difficulty(images: Manifest) -> np.ndarray:
    # real images have the one column, generated ones the other
    scored = images.column("difficulty")
    return np.where(np.isfinite(scored), scored, images.column("measured_difficulty"))
