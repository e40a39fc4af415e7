"""The judge's answers: what a classifier that saw other images than scorer and generator takes images for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.classifier import Images
    from dcdm_cli.difficulty.feature_cache import FeatureCache
    from dcdm_cli.difficulty.scorer import Scorer
    from dcdm_cli.run.progress import Job, Progress

CHUNK = 1024  # images whose class probabilities are held at once


@dataclass(frozen=True)
class Judge:
    """scorer: of one model; trained_on: how many images. looks: the features of images that were looked at before, and
    the job that looks at others; None = all are looked at."""

    scorer: Scorer
    trained_on: int
    progress: Progress | None = None
    looks: tuple[FeatureCache, Job] | None = None

    def labels(self, images: Images) -> np.ndarray:
        """int64 [N]: what the judge takes the images for."""
        parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        # -1: nothing is asked about a label, only what the images are taken for
        asked = [(part, np.full(len(part), -1)) for part in parts]
        found = [self.scorer.measure(*ask, progress=self.progress).predicted for ask in asked]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def labels_of(self, images: Manifest) -> np.ndarray:
        """`labels` of a manifest's images: by features that are known, where the judge stands on such."""
        from dcdm_cli.difficulty.known import found_in

        if self.looks is None:
            return self.labels(images.paths())
        cache, job = self.looks
        return found_in(images, self.scorer, cache, job, "the judge is trained").predicted

    def features(self, images: Images) -> np.ndarray:
        """float32 [N, D]"""
        from dcdm_cli.evaluation.features import features_of

        return features_of(self.scorer.models[0], images, self.scorer.preprocessing, self.scorer.device)
