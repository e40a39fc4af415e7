"""What learns from the images of an arm: a network of its own, or a linear head on frozen features. Not from the paper.

A head takes seconds where a network takes minutes, and asks another question: what images are worth to somebody who
fine-tunes the last layer of a network that has seen a million photographs. Augmentation has no part in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.data.images import image_hash
from dcdm_cli.difficulty.classifier import build_classifier, decoded, predict_logits, train_classifier
from dcdm_cli.difficulty.feature_cache import FeatureCache
from dcdm_cli.difficulty.features import open_extractor
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.difficulty.linear import Lesson, fit_head
from dcdm_cli.difficulty.packaged import PACKAGED
from dcdm_cli.run.progress import Job, Progress
from dcdm_cli.run.roles import fingerprint
from dcdm_cli.run.settings import ClassifierConfig, DownstreamConfig

FEWEST_CLASSES = 2  # of a network that is only tried


@dataclass(frozen=True)
class Learner:
    """config: of the classifier; classes: how many; cache: folder of features, None = one that is gone afterwards.
    keep: as in `train_classifier`."""

    config: ClassifierConfig
    classes: int
    seed: int
    device: str
    cache: Path | None = None
    keep: Keep | None = None

    def answers(
        self, images: Sequence[Path], labels: np.ndarray, asked: Sequence[Path], progress: Progress | None = None
    ) -> np.ndarray:
        """Logits float32 [asked, classes] after learning from `images` with their labels, int64 [N].

        Raises what training and opening a network raise.
        """
        if on_features(self.config) is not None:
            return self._by_head(images, labels, asked)
        told = self.keep.job.progress if self.keep else None
        model = train_classifier(
            list(images), labels, self.classes, self.config, self.seed, self.device, progress=told, keep=self.keep
        )
        return predict_logits(model, list(asked), self.config, self.device, progress=progress)

    def _by_head(self, images: Sequence[Path], labels: np.ndarray, asked: Sequence[Path]) -> np.ndarray:
        config, job = on_features(self.config), self.keep.job if self.keep else Job(self.device)
        assert config is not None
        extractor = open_extractor(config.features, config.feature_size, self.device)
        known = [image_hash(decoded(image)) for image in images]  # copies share an inner fold
        with _folder(self.cache) as folder:
            seen = FeatureCache(folder).of_files(extractor, images, job, known)
            others = FeatureCache(folder).of_files(extractor, asked, job)
            lesson = Lesson(seen.take(np.arange(len(seen))), labels, known, self.classes)
            head = fit_head(lesson, self.seed, self.device)
            return np.concatenate([head.logits(features) for _, features in others.parts()])


def check_learner(config: ClassifierConfig) -> None:
    """Raises what opening its network raises, where that is another than the packaged one."""
    head = on_features(config)
    if head is not None and head.features != PACKAGED:
        open_extractor(head.features, head.feature_size)
    if head is None and config.pretrained and config.model != PACKAGED:
        build_classifier(config, FEWEST_CLASSES)


def on_features(config: ClassifierConfig) -> DownstreamConfig | None:
    """The settings of a head on frozen features; None for those of a network."""
    return config if isinstance(config, DownstreamConfig) and config.method == "features" else None


def learner_name(config: ClassifierConfig) -> str:
    if (head := on_features(config)) is not None:
        return f"linear head on {head.features} features"
    return f"{config.model}, pretrained" if config.pretrained else config.model


def learner_settings(config: ClassifierConfig) -> dict[str, Any]:
    """The settings that what is learnt depends on, as plain values."""
    # a head has no steps and a network no features: settings of the other must not change the keys of what is finished
    wanted = ("features", "feature_size") if on_features(config) is not None else tuple(ClassifierConfig.model_fields)
    return {name: value for name, value in fingerprint(config).items() if name in wanted}


@contextmanager
def _folder(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="dcdm-features-") as folder:
        yield Path(folder)
