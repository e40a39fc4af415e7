"""What must hold before an evaluation means anything, and what only needs to be said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcdm_cli.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.feature_cache import FeatureCache
    from dcdm_cli.run.progress import Job

HELD_OUT = {"test": "test", "validation": "judge"}  # the setting evaluate.holdout -> the split it names
SET_ASIDE = {"test": "--test-fraction 0.3", "judge": "--test-fraction 0.3 --judge-fraction 0.4"}  # that do
FEW = 5  # images per class below which the report warns


@dataclass(frozen=True)
class Evaluated:
    """real: the training images; held_out: what classifiers are tested on; warnings: for the report."""

    manifest: Manifest
    real: Manifest
    held_out: Manifest
    warnings: tuple[str, ...]


def evaluated(manifest: Manifest, holdout: str) -> Evaluated:
    """holdout: test or validation. Raises UsageError for splits or classes that are missing.

    Held-out images that are also training images are left out, and that is said.
    """
    _check_held_out(manifest, HELD_OUT[holdout])
    real, held_out = manifest.split("train"), manifest.split(HELD_OUT[holdout])
    _check_classes(real)
    clean, overlap = _without_copies(real, held_out)
    return Evaluated(manifest, real, clean, (*_few(real), *overlap))


def held_out_difficulty(
    scorer: Path, held_out: Manifest, looked: FeatureCache, job: Job, saved: str = "no classifier has been trained yet"
) -> np.ndarray:
    """float32 [held-out images]: what the scorer in this folder, which has seen none of them, finds in each. looked,
    saved: as `found_in` takes them."""
    from dcdm_cli.difficulty.known import found_in
    from dcdm_cli.difficulty.scorer import Scorer

    return found_in(held_out, Scorer.load(scorer, job.device), looked, job, saved).difficulty


def check_scorer(scorer: Path) -> None:
    if not scorer.exists():
        raise UsageError(
            f"evaluation needs a scorer, and there is none at {scorer} (scores from a column leave none)",
            "score with a classifier: dcdm score --method crossfit --force",
            file=scorer,
        )


def check_classes(adapter: Path, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    """Raises MismatchError when an adapter was trained on other classes than the run's."""
    if theirs != ours:
        raise MismatchError(
            f"the adapter was trained on other classes: {_difference(theirs, ours)}",
            "fine-tune on this run's images: dcdm finetune --force",
            file=adapter,
        )


def _check_held_out(manifest: Manifest, split: str) -> None:
    if not len(manifest.split(split)):
        raise UsageError(
            f"the run has no {split} images to measure on: none that nothing was trained on",
            f"set some of the source's aside: dcdm score {SET_ASIDE[split]} --force, or name one of its parts: dcdm "
            f"score --split-map NAME={split} --force; then go on from dcdm caption",
        )


def _check_classes(real: Manifest) -> None:
    if (real.class_counts() > 0).sum() < 2:
        raise UsageError(
            "an evaluation needs training images of at least two classes",
            "add a second class folder and run dcdm score again",
        )


def _without_copies(real: Manifest, held_out: Manifest) -> tuple[Manifest, list[str]]:
    from dcdm_cli.difficulty.crossfit import identities_of

    # by content: the id of a row also has its name in it, which is another one in another split
    copies = np.isin(identities_of(held_out), identities_of(real))
    if copies.all():
        raise UsageError(
            "every held-out image is also a training image: accuracy on them would say nothing",
            "give the source a test split of its own and run dcdm score again",
        )
    if not copies.any():
        return held_out, []
    text = f"leak: {copies.sum()} of {len(held_out)} held-out images are also training images and are left out"
    return held_out.select(~copies), [text]


def _few(real: Manifest) -> list[str]:
    counts = real.class_counts()
    few = [name for name, count in zip(real.class_names, counts, strict=True) if count < FEW]
    if not few:
        return []
    shown = ", ".join(few[:3]) + (" …" if len(few) > 3 else "")
    return [f"{len(few)} classes have fewer than {FEW} training images ({shown}): what is said of them means little"]


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} of them, this run has {len(ours)}"
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {first} is {theirs[first]!r} there and {ours[first]!r} here"
