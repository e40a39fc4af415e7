"""The judge: a classifier of the same classes, made from other images than the scorer's. Not from the paper.

One head on frozen features, or one network trained from scratch, whichever `judge.method` says; `auto` decides by what
each gets right out of fold on the judge's own images, within a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import (
    load_classifier,
    preprocessing_of,
    save_classifier,
    train_classifier,
)
from dcdm_cli.difficulty.crossfit import fold_of, identities_of
from dcdm_cli.difficulty.feature_folds import Seen, head_on_all
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.difficulty.scorer import DESCRIPTION, Scorer, save_feature_scorer
from dcdm_cli.difficulty.scoring import Scored, Scoring, score_images, seen_features
from dcdm_cli.errors import UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig, JudgeConfig, ScoreConfig


@dataclass(frozen=True)
class FittedJudge:
    """save: writes it into a folder, for `load_judge`. results: what to report."""

    save: Callable[[Path], None]
    results: dict[str, Any]


def fit_judge(judged: Manifest, config: JudgeConfig, seed: int, place: Scoring, job: Job) -> FittedJudge:
    """judged: the judge's images. seed: of folds and weights; another than the scorer's. place: where features are kept
    and a stopped run goes on from.

    Raises what scoring and training raise.
    """
    if config.method == "scratch":
        return _trained(judged, config, seed, place, job, {"method": "scratch"})
    tried = _tried(judged, config, seed, place, job)
    assert tried.used is not None
    if tried.used.method == "crossfit":
        return _trained(judged, tried.used, seed, place, job, tried.results)
    return _on_features(judged, config, seed, place, job, tried.results)


def load_judge(folder: Path, device: torch.device | str = "cpu") -> Scorer:
    """As a scorer of one model, temperature 1 where it was trained. Raises NotFoundError, MismatchError."""
    if (folder / DESCRIPTION).is_file():
        return Scorer.load(folder, device)
    stored = load_classifier(folder, device)
    preprocessing = preprocessing_of(stored.model, stored.config)
    return Scorer((stored.model,), stored.class_names, preprocessing, stored.temperature, torch.device(device))


def check_judged(judged: Manifest, config: JudgeConfig, seed: int = 0) -> None:
    """Raises UsageError, which names how many images each class has and the choices, where the judge's images cannot
    teach it by `config.method`. Whether they can does not depend on the seed."""
    if not len(judged):
        raise UsageError(
            "there are no images for the judge",
            "name one of the source's parts (--split-map NAME=judge) or hold out more images of dcdm score "
            "(--test-fraction, --judge-fraction)",
        )
    if config.method == "scratch":
        return
    labels = judged.column("label").astype(np.int64)
    try:
        fold_of(identities_of(judged), labels, config.folds, seed)
    except UsageError as error:
        counts = judged.class_counts()
        raise UsageError(
            f"the judge's images are too few to learn from by features: {len(judged)} of "
            f"{np.count_nonzero(counts)} classes, {counts.max(initial=0)} at most of a class, and it takes 2 classes "
            "and 2 different images of one",
            "hold out more images of dcdm score (--test-fraction), of which the judge gets a larger share "
            "(--judge-fraction), add images, or train the judge: --set judge.method=scratch",
        ) from error


def _tried(judged: Manifest, config: JudgeConfig, seed: int, place: Scoring, job: Job) -> Scored:
    """What the judge's images say of each method out of fold."""
    check_judged(judged, config, seed)
    # tried as a scorer would be, with the settings that both have
    shared = {name: getattr(config, name) for name in JudgeConfig.model_fields if name in ScoreConfig.model_fields}
    settings = ScoreConfig.model_validate({**shared, "method": config.method, "seed": seed})
    return score_images(judged, settings, place, job)


def _trained(
    judged: Manifest, used: ClassifierConfig, seed: int, place: Scoring, job: Job, results: dict[str, Any]
) -> FittedJudge:
    names, keep = judged.class_names, Keep(job, place.spool / "fit")
    model = train_classifier(
        judged.paths(), judged.column("label"), len(names), used, seed, job.device, job.progress, keep
    )

    def save(folder: Path) -> None:
        save_classifier(model, folder, names, used)
        # not before the judge is safe: the checkpoints are all that there is of it
        keep.forget()

    return FittedJudge(save, results)


def _on_features(
    judged: Manifest, config: JudgeConfig, seed: int, place: Scoring, job: Job, results: dict[str, Any]
) -> FittedJudge:
    # without notes: `_tried` has looked at the same images, and has said what there is to say of them
    table, extractor = seen_features(judged, config, place.features, Job(job.device, job.progress, job.stop_signal))
    head = head_on_all(Seen.of(table, judged), extractor, seed, job.device)
    temperature = float(results["temperature"])
    return FittedJudge(
        lambda folder: save_feature_scorer(folder, [head], judged.class_names, temperature, extractor), results
    )
