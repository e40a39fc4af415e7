"""Fidelity, near-duplicates, blank images and label agreement of generated images, beside real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.arrays import evenly

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.feature_cache import FeatureCache
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.evaluation.features import Space
    from dcdm_cli.evaluation.judge import Judge
    from dcdm_cli.evaluation.leakage import Findings, Looks, Nearest
    from dcdm_cli.run.progress import Job, Progress


@dataclass(frozen=True)
class Checked:
    """What was found in the generated images, image by image."""

    images: Manifest
    findings: Findings
    to_train: Nearest
    to_test: Nearest
    real: Nearest
    to_source: Nearest | None

    def summary(self) -> dict[str, Any]:
        from dcdm_cli.evaluation.adherence import share_kept
        from dcdm_cli.evaluation.leakage import leakage

        return {
            "images": len(self.images),
            "blank": int(self.findings.blank.sum()),
            "label_agreement": share_kept(self.findings.agrees),
            "leakage": {"features": "thumbnails"} | leakage(self.to_train, self.to_test, self.real, self.to_source),
        }


def check_images(data: Evaluated, images: Manifest, difficulty: np.ndarray, judge: Judge | None, job: Job) -> Checked:
    """difficulty: float32 [N], of the images. Raises NotFoundError for an image that can no longer be read."""
    from dcdm_cli.evaluation.leakage import Findings, look, nearest
    from dcdm_cli.generation.shards import FLAT_IMAGE

    parts = (images, data.real, data.held_out)
    report = _as_one(job.progress, sum(map(len, parts)))
    made, real, held_out = (look(part.paths(), report) for part in parts)
    to_train, to_test = nearest(made, real), nearest(made, held_out)
    findings = Findings(
        blank=made.spread < FLAT_IMAGE,
        near_test=to_test.same,
        near_train=to_train.same,
        agrees=None if judge is None else judge.labels_of(images) == images.column("label"),
        difficulty=difficulty,
    )
    # of real images too: by how near they come to training images, nearness of generated ones is told
    return Checked(images, findings, to_train, to_test, nearest(held_out, real), _to_source(images, data, made, real))


def _to_source(images: Manifest, data: Evaluated, made: Looks, real: Looks) -> Nearest | None:
    """From each image to the real one that it started from; None where all started from noise."""
    from dcdm_cli.evaluation.leakage import to_own

    sources = images.table["source_id"].to_pylist()
    if not any(sources):
        return None
    place = {sample: row for row, sample in enumerate(data.real.column("sample_id"))}
    return to_own(made, real, np.array([place.get(source, -1) for source in sources], np.int64))


def measured_difficulty(scorer: Path, images: Manifest, looked: FeatureCache, job: Job) -> np.ndarray:
    """float32 [N]: what generation measured, or the answer of the scorer in this folder where it did not. looked: as
    `found_in` takes it."""
    from dcdm_cli.difficulty.known import found_in
    from dcdm_cli.difficulty.scorer import Scorer

    # a column may be a view of the table, into which nothing can be written
    difficulty = images.column("measured_difficulty").copy()
    missing = np.flatnonzero(~np.isfinite(difficulty))
    if len(missing):
        rest = images.select(missing)
        asked = Scorer.load(scorer, job.device)
        difficulty[missing] = found_in(rest, asked, looked, job, "the images are finished").difficulty
    return difficulty


def _as_one(progress: Progress, total: int) -> Progress:
    """For work that reports every unit of several parts: they are told as one, with one end."""
    done = count(1)
    return lambda what, _, __: progress(what, next(done), total)


def spaces(wanted: str, cache: FeatureCache, judge: Judge | None, job: Job) -> list[Space]:
    """What images are compared in: the space that was asked for (`evaluate.features`) first. cache: of features
    that are known already. judge: needed for its own space alone."""
    from dcdm_cli.evaluation.features import JUDGE, frozen_space, model_space
    from dcdm_cli.evaluation.fidelity import INCEPTION, inception

    if wanted == JUDGE:
        assert judge is not None, "callers refuse its features without one"
        scorer = judge.scorer
        found = [model_space(JUDGE, scorer.models[0], scorer.preprocessing, scorer.device)]
    else:
        found = [frozen_space(wanted, cache, job)]
    if (network := inception(job.device)) is not None:
        found.append(model_space(f"timm/{INCEPTION}", *network, job.device))
    return found


def compared(
    data: Evaluated, images: Manifest, among: Sequence[Space]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(fidelity, copying) in every space, against held-out real images, which the generator has not seen; real training
    images beside them, for scale."""
    from dcdm_cli.evaluation.features import MOST
    from dcdm_cli.evaluation.fidelity import fidelity
    from dcdm_cli.evaluation.leakage import copying

    parts = {"generated": images, "real": data.real, "held out": data.held_out}
    chosen = {name: part.select(evenly(len(part), MOST)) for name, part in parts.items()}
    likeness, copies = [], []
    for space in among:
        seen = {name: space.of(part) for name, part in chosen.items()}
        likeness += [
            {"features": space.name, "images": name, **fidelity(seen[name], seen["held out"])}
            for name in ("generated", "real")
        ]
        copies.append({"features": space.name, **copying(seen["generated"], seen["real"], seen["held out"])})
    return likeness, copies
