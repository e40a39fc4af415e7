"""Out-of-fold scores from frozen features: the folds of `crossfit`, with a small head for each instead of a network.

Every contract of `crossfit` holds. Images are looked at once, whatever the number of folds and rounds, and a set of any
size is gone through in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dcdm_cli.arrays import evenly
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import OnTrunk
from dcdm_cli.difficulty.crossfit import CrossFit, FittedFolds, identities_of, rounds_of
from dcdm_cli.difficulty.feature_cache import FeatureTable
from dcdm_cli.difficulty.features import Extractor
from dcdm_cli.difficulty.linear import FIT_ROWS, Head, Lesson, fit_head
from dcdm_cli.difficulty.scores import (
    SCORES,
    TEMPERATURE_ROWS,
    accuracy_of,
    fit_temperature,
    mean_log_probs,
    score_columns,
)
from dcdm_cli.difficulty.stream import suspects
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig


@dataclass(frozen=True)
class Seen:
    """Images as a network sees them: what heads are fitted on and asked about. labels: int64 [N], -1 = unknown."""

    table: FeatureTable
    labels: np.ndarray
    identities: Sequence[str]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, table: FeatureTable, manifest: Manifest) -> Seen:
        """Checked by whoever fits a head: `manifest` has the rows of the table."""
        return cls(table, manifest.column("label").astype(np.int64), identities_of(manifest), manifest.class_names)

    def lesson(self, rows: np.ndarray) -> Lesson:
        """rows: bool [N]. At most `FIT_ROWS` of them."""
        chosen = np.flatnonzero(rows & (self.labels >= 0))
        chosen = chosen[evenly(len(chosen), FIT_ROWS)]
        identities = [self.identities[int(row)] for row in chosen]
        return Lesson(self.table.take(chosen), self.labels[chosen], identities, len(self.class_names))


def crossfit_features(
    manifest: Manifest, table: FeatureTable, extractor: Extractor, config: ScoreConfig, job: Job
) -> CrossFit:
    """Scores each image with heads that did not learn from it, `config.repeats` times with other folds. table: of the
    manifest's rows.

    Raises UsageError unless two classes have images and one of them at least two, InterruptedRunError when asked to
    stop: features are kept, heads are a matter of seconds.
    """
    seen = Seen.of(table, manifest)
    folds = rounds_of(manifest, seen.labels, config)
    heads = _heads(seen, folds, config, job)
    fitted = FittedFolds((), folds.astype(np.int16), _unknown(seen, folds))
    # a head that never saw the class would call the image as hard as can be, whatever it shows
    usable = np.where(fitted.unknown.any(axis=0), -1, seen.labels)
    temperature = _temperature(table, heads, fitted.chosen, usable) if config.temperature else 1.0
    columns = _columns(table, heads, fitted.chosen, usable, temperature)
    columns |= {"suspect_label": suspects(columns, usable, len(seen.class_names))}
    models = tuple(OnTrunk(extractor.network, head.layer(job.device)) for head in heads)
    accuracy = accuracy_of(columns["predicted"], usable)
    return CrossFit(columns | {"fold": folds[0].astype(np.int32)}, models, temperature, accuracy)


def _heads(seen: Seen, folds: np.ndarray, config: ScoreConfig, job: Job) -> list[Head]:
    """Of the first round, then of the second, ...; heads[k] did not learn from fold k."""
    per_round = int(folds[0].max()) + 1
    heads: list[Head] = []
    for number, fold in np.ndindex(len(folds), per_round):
        heads.append(fit_head(seen.lesson(folds[number] != fold), config.seed + len(heads), job.device))
        job.progress("cross-fitting", len(heads), len(folds) * per_round)
        job.stop_if_asked(f"the features are kept; {len(heads)} of {len(folds) * per_round} heads were fitted")
    return heads


def _unknown(seen: Seen, folds: np.ndarray) -> np.ndarray:
    """bool [R, N]: no image outside the fold is of the class."""
    unknown = np.zeros(folds.shape, bool)
    for number, fold in np.ndindex(len(folds), int(folds[0].max()) + 1):
        here = folds[number] == fold
        unknown[number] |= here & ~np.isin(seen.labels, seen.labels[~here & (seen.labels >= 0)])
    return unknown


def _logits(features: np.ndarray, heads: Sequence[Head], chosen: np.ndarray) -> np.ndarray:
    """float32 [R, n, C]: in round r, image i is asked of heads[chosen[r, i]]."""
    logits = np.zeros((*chosen.shape, len(heads[0].bias)), np.float32)
    for number, asked in enumerate(chosen):
        for head in np.unique(asked):
            rows = asked == head
            logits[number, rows] = heads[head].logits(features[rows])
    return logits


def _temperature(table: FeatureTable, heads: Sequence[Head], chosen: np.ndarray, labels: np.ndarray) -> float:
    """By an even selection of images."""
    rows = np.flatnonzero(labels >= 0)
    # each row is asked about once per round
    rows = rows[evenly(len(rows), max(1, TEMPERATURE_ROWS // len(chosen)))]
    logits = _logits(table.take(rows), heads, chosen[:, rows])
    return fit_temperature(np.concatenate(logits), np.tile(labels[rows], len(logits)))


def _columns(
    table: FeatureTable, heads: Sequence[Head], chosen: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, np.ndarray]:
    parts = [
        score_columns(mean_log_probs(_logits(features, heads, chosen[:, here]), temperature), labels[here])
        # in parts: the features of a large set do not fit into memory
        for here, features in table.parts()
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in (*SCORES, "predicted")}


def head_on_all(seen: Seen, extractor: Extractor, seed: int, device: torch.device | str) -> OnTrunk:
    """One classifier that learnt from every image."""
    return OnTrunk(extractor.network, fit_head(seen.lesson(seen.labels >= 0), seed, device).layer(device))
