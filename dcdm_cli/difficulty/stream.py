"""Scoring sets of any size: some thousand images at a time, each by the classifiers that did not train on it.

Chunks are independent tasks, so that they can be kept, resumed and spread over workers. What rules about the whole set
(the temperature, suspect labels) needs a bounded sample or a few bytes per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from dcdm_cli.difficulty.classifier import Images, Preprocessing, chosen_logits
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.difficulty.scores import (
    SCORES,
    TEMPERATURE_ROWS,
    Rivals,
    contradicted,
    fit_temperature,
    mean_log_probs,
    score_columns,
)
from dcdm_cli.files import atomic_path
from dcdm_cli.run.progress import Job
from dcdm_cli.run.seals import is_whole, seal_beside
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.messages import Piece, unshared

CHUNK = 2048  # images of one task
COLUMNS = pa.schema([*((name, pa.float32()) for name in SCORES), ("predicted", pa.int32())])


@dataclass(frozen=True)
class ChunkTask:
    """images: files. labels: int64 [n], -1 = not to be scored. models: int16 [rounds, n], who scores which image."""

    number: int
    images: Sequence[Path]
    labels: np.ndarray
    models: np.ndarray


@dataclass(frozen=True)
class ScoreSet:
    """A set to be scored. images, labels [N], models [rounds, N]: as in `ChunkTask`."""

    images: Sequence[Path]
    labels: np.ndarray
    models: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def chunks(self) -> int:
        return -(-len(self) // CHUNK)

    def task(self, number: int) -> ChunkTask:
        here = slice(number * CHUNK, (number + 1) * CHUNK)
        return ChunkTask(number, list(self.images[here]), self.labels[here], self.models[:, here])


class ChunkScorer:
    """A stored scorer as a pool's worker: says the columns of each chunk it is given."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.hello = scorer, scorer.class_names

    def run(self, task: ChunkTask) -> Iterator[dict[str, np.ndarray]]:
        scorer = self.scorer
        logits = chosen_logits(scorer.models, task.models, task.images, scorer.preprocessing, scorer.device)
        yield score_columns(mean_log_probs(logits, scorer.temperature), task.labels)


def open_chunk_scorer(folder: Path, threads: int | None, device: str, should_stop: Callable[[], bool]) -> ChunkScorer:
    """A partial of this with folder and threads is what a pool's transport takes. A chunk is short enough to finish."""
    if threads:
        torch.set_num_threads(threads)
    if not folder.is_dir():
        raise unshared(folder)
    return ChunkScorer(Scorer.load(folder, device))


def score_in_chunks(
    data: ScoreSet, worker: Callable[[], ChunkScorer], spool: Path, job: Job, pool: WorkerPool | None = None
) -> dict[str, np.ndarray]:
    """Score columns of every image; whole chunks that are in `spool` already are not scored again.

    worker: opened when there is work and no worker pool. Raises InterruptedRunError when asked to stop.
    """
    spool.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(data.chunks) if not is_whole(_file(spool, number))]

    def said(chunk: Piece, columns: Mapping[str, np.ndarray]) -> int:
        with atomic_path(_file(spool, chunk.number)) as part:
            pq.write_table(pa.table([pa.array(columns[name]) for name in COLUMNS.names], COLUMNS), part)
        seal_beside(_file(spool, chunk.number))
        job.progress("scoring images", min(len(data), CHUNK * _done(spool)), len(data))
        return 1

    saved = lambda: f"{_done(spool)} of {data.chunks} chunks are scored"  # noqa: E731
    if pool is not None:
        pool.work([Piece("chunk", number) for number in missing], lambda chunk: data.task(chunk.number), said, saved)
    elif missing:
        scorer = worker()
        for number in missing:
            for columns in scorer.run(data.task(number)):
                said(Piece("chunk", number), columns)
            job.stop_if_asked(saved())
    tables = [pq.read_table(_file(spool, number)) for number in range(data.chunks)]
    whole = pa.concat_tables(tables) if tables else COLUMNS.empty_table()
    return {name: whole[name].to_numpy() for name in COLUMNS.names}


def sample_temperature(
    data: ScoreSet, models: Sequence[nn.Module], preprocessing: Preprocessing, device: torch.device | str
) -> float:
    """`scores.fit_temperature` over an even selection of at most 50,000 (round, image) pairs."""
    rounds, count = data.models.shape
    pairs = np.flatnonzero(np.tile(data.labels >= 0, rounds))
    pairs = pairs[:: len(pairs) // TEMPERATURE_ROWS + 1]
    logits = []
    for number in range(rounds):
        # pairs count the images once per round
        rows = pairs[pairs // count == number] % count
        images: Images = [data.images[int(row)] for row in rows]
        logits.append(chosen_logits(models, data.models[number : number + 1, rows], images, preprocessing, device)[0])
    return fit_temperature(np.concatenate(logits), data.labels[pairs % count])


def suspects(columns: Mapping[str, np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """`scores.suspect_labels`, bool [N], from the score columns of the whole set."""
    own, margin = columns["p_true"], columns["margin"]
    other = own - margin  # the largest of another class: the predicted one's, wherever the label does not lead
    return contradicted(Rivals(own, other, -margin, columns["predicted"]), labels, classes)


def _file(spool: Path, number: int) -> Path:
    return spool / f"{number:06d}.parquet"


def _done(spool: Path) -> int:
    return sum(1 for _ in spool.glob("*.parquet"))
