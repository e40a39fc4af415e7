"""`dcdm evaluate images`: two folders of images compared, with or without a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcdm_cli.errors import UsageError
from dcdm_cli.run.session import Session
from dcdm_cli.stages.devices import pool_of, settle_placement
from dcdm_cli.stages.jobs import open_job


def run_image_sets(session: Session, images: Path, against: Path) -> dict[str, Any]:
    """The figures. Writes nothing but what features are kept in a run's cache, where there is a run.

    Raises UsageError for the same folder twice, and for features of a judge, which only a run has.
    """
    from dcdm_cli.difficulty.feature_cache import FeatureCache
    from dcdm_cli.evaluation.features import JUDGE, MOST, frozen_space
    from dcdm_cli.evaluation.image_sets import compared_sets, read_set

    features = session.config.evaluate.features
    if features == JUDGE:
        raise UsageError("two folders have no judge: it is a classifier of a run", "add --features packaged")
    # `samefile` needs both; one that is not there is named by `read_set`
    if images.exists() and against.exists() and images.samefile(against):
        raise UsageError(f"{images} is given twice", "name another folder: --against FOLDER")
    job = open_job(session)
    sets = [read_set(folder, MOST, job) for folder in (images, against)]
    for one in sets:
        if one.listed > MOST:
            session.console.note(f"{one.folder}: {MOST} of {one.listed} images, spread evenly")
        for bad in one.rejected[:1]:
            session.console.warn(f"{one.folder}: {len(one.rejected)} cannot be read, one is {bad.path}: {bad.reason}")
    with _cache(session) as folder:
        placement = settle_placement(session)
        space = frozen_space(features, FeatureCache(folder, pool_of(session, placement, job), placement.threads), job)
        session.console.note(f"features: {space.name}")
        found = compared_sets(sets[0], sets[1], [space])
    described = {name: one.document() for name, one in zip(("images", "against"), sets, strict=True)}
    return {"stage": "images", "features": space.name, **described, **found}


@contextmanager
def _cache(session: Session) -> Iterator[Path]:
    """The run's, if there is one; otherwise a folder that is gone afterwards."""
    from dcdm_cli.data.trees import is_run_folder

    if is_run_folder(session.run.path):
        yield session.run.cache / "features"
        return
    with tempfile.TemporaryDirectory(prefix="dcdm-features-") as folder:
        yield Path(folder)
