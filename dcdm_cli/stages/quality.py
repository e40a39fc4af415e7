"""The quality of the run's generated images, as metrics.json has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import MismatchError
from dcdm_cli.run.standing import run_words
from dcdm_cli.stages.devices import run_features

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.evaluation.judge import Judge
    from dcdm_cli.evaluation.quality import Checked
    from dcdm_cli.run.progress import Job
    from dcdm_cli.run.session import Session


def generated_images(session: Session, data: Evaluated) -> Manifest | None:
    """None before `dcdm generate`. Raises MismatchError for images of other classes, for changed ones, and where their
    table is gone."""
    from dcdm_cli.generation.finished import read_generated

    file = session.run.generated / "samples.parquet"
    if not file.is_file():
        if session.run.record("generate") is None or not file.parent.exists():  # a whole set is removed on purpose
            return None
        raise MismatchError(f"{file} is gone", "dcdm generate writes it again from the shards", file=file)
    images = read_generated(file.parent)
    if images.class_names != data.manifest.class_names:
        raise MismatchError(
            "the generated images are of other classes than this run's images",
            "make them again: dcdm generate --force",
            file=file,
        )
    return images if len(images) else None


def generated_quality(session: Session, data: Evaluated, judge: Judge | None, job: Job) -> dict[str, Any] | None:
    """The `quality` part of metrics.json; None before `dcdm generate`."""
    from dcdm_cli.evaluation.quality import compared, spaces

    images = generated_images(session, data)
    if images is None:
        again = f"dcdm generate{run_words(session.run)}"
        session.console.note(f"no generated images in this run yet: quality is left out ({again} makes them)")
        return None
    checked = checked_images(session, data, images, judge, job)
    quality = checked.summary()
    among = spaces(session.config.evaluate.features, run_features(session, job), judge, job)
    quality["fidelity"], quality["copying"] = compared(data, images, among)
    # accuracy on images that were repeated is inflated
    if quality["leakage"]["level"] == "error":
        session.console.warn(f"leak: {quality['leakage']['near_test']} generated images repeat test images")
    return quality


def checked_images(session: Session, data: Evaluated, images: Manifest, judge: Judge | None, job: Job) -> Checked:
    from dcdm_cli.evaluation.quality import check_images

    return check_images(data, images, difficulty_of(session, images, job), judge, job)


def difficulty_of(session: Session, images: Manifest, job: Job) -> np.ndarray:
    """`measured_difficulty` by the run's scorer and what the run keeps of its images."""
    from dcdm_cli.evaluation.quality import measured_difficulty

    return measured_difficulty(session.run.scorer, images, run_features(session, job), job)
