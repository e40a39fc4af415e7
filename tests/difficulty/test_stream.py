"""Scoring in chunks gives what scoring in memory gives, goes on where it stopped, and may be spread over workers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.data.manifest import SCORE_COLUMNS, Manifest
from dcdm_cli.difficulty import crossfit as crossfit_module
from dcdm_cli.difficulty import scoring, stream
from dcdm_cli.difficulty.scores import score_columns, softmax, suspect_labels
from dcdm_cli.difficulty.scoring import Scoring, score_images
from dcdm_cli.errors import InterruptedRunError, NotFoundError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ScoreConfig
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.local import LocalTransport

from .conftest import MakeManifest

Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def train(digits: Digits, make_manifest: MakeManifest) -> Manifest:
    return make_manifest(digits[0][:60], digits[1][:60])


@pytest.fixture
def config(quick: ScoreConfig) -> ScoreConfig:
    return quick.model_copy(update={"repeats": 2})


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "STREAM_ABOVE", 10)
    monkeypatch.setattr(stream, "CHUNK", 16)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right) == set(SCORE_COLUMNS)
    for name in left:
        np.testing.assert_allclose(left[name].astype(float), right[name].astype(float), atol=2e-5, err_msg=name)


def test_chunks_give_what_memory_gives(
    train: Manifest, config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_images(train, config, Scoring(tmp_path / "a-spool"), Job())
    small_chunks(monkeypatch)
    chunked = score_images(train, config, Scoring(tmp_path / "b-spool"), Job())
    same(whole.columns, chunked.columns)
    assert whole.results.keys() == chunked.results.keys()
    assert whole.results["temperature"] == pytest.approx(chunked.results["temperature"], rel=1e-3)
    assert len(list((tmp_path / "b-spool/chunks").glob("*.parquet"))) == 4


def test_a_stopped_scoring_neither_trains_nor_scores_again(
    train: Manifest, config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    place, trained, scored = Scoring(tmp_path / "spool"), [], []
    train_one, run = crossfit_module.train_classifier, stream.ChunkScorer.run
    monkeypatch.setattr(crossfit_module, "train_classifier", lambda *a: (trained.append(1), train_one(*a))[1])
    monkeypatch.setattr(stream.ChunkScorer, "run", lambda self, task: (scored.append(task.number), run(self, task))[1])
    with pytest.raises(InterruptedRunError, match="2 of 4 chunks are scored"):
        score_images(train, config, place, Job(stop_signal=lambda: "SIGINT" if len(scored) == 2 else None))
    resumed = score_images(train, config, place, Job())
    assert len(trained) == 6 and scored == [0, 1, 2, 3]
    through = score_images(train, config, Scoring(tmp_path / "other-spool"), Job())
    same(resumed.columns, through.columns)


@pytest.mark.parametrize("how", ["bit", "half", "gone", "seal gone"])
def test_a_chunk_that_is_not_what_was_scored_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    small_chunks(monkeypatch)
    scored: list[int] = []

    class Numbering(stream.ChunkScorer):
        def __init__(self) -> None:
            pass

        def run(self, task: stream.ChunkTask) -> Iterator[dict[str, np.ndarray]]:
            scored.append(task.number)
            yield {name: np.full(len(task.labels), task.number) for name in stream.COLUMNS.names}

    data = stream.ScoreSet([Path()] * 40, np.zeros(40, np.int64), np.zeros((1, 40), np.int16))
    through = stream.score_in_chunks(data, Numbering, tmp_path, Job())
    file = tmp_path / ("000001.seal" if how == "seal gone" else "000001.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[: len(content) // (2 if how == "half" else 1)])
    if how.endswith("gone"):
        file.unlink()
    again = stream.score_in_chunks(data, Numbering, tmp_path, Job())
    assert scored == [0, 1, 2, 1]
    assert all(np.array_equal(again[name], through[name]) for name in through)


@pytest.mark.slow
def test_a_worker_pool_scores_the_same(
    train: Manifest, config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    alone = score_images(train, config, Scoring(tmp_path / "spool"), Job())
    opener = partial(stream.open_chunk_scorer, tmp_path / "spool/scorer", 1)
    data = stream.ScoreSet(
        train.image_paths(), train.column("label").astype(np.int64), np.zeros((1, len(train)), np.int16)
    )
    here = stream.score_in_chunks(data, lambda: opener("cpu", lambda: False), tmp_path / "here", Job())
    with WorkerPool(LocalTransport(opener, ["cpu"], threads=1), Job()) as pool:
        there = stream.score_in_chunks(data, lambda: pytest.fail("not here"), tmp_path / "there", Job(), pool)
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])
    assert len(alone.columns["difficulty"]) == 60


def test_a_machine_that_does_not_see_the_scorer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=rf"{socket.gethostname()} does not see .*scorer") as caught:
        stream.open_chunk_scorer(tmp_path / "scorer", 1, "cpu", lambda: False)
    assert "all machines share" in caught.value.hint


def test_suspects_of_columns_are_those_of_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 7))
    labels = np.where(rng.random(4000) < 0.7, logits.argmax(1), rng.integers(-1, 7, 4000))
    logits[::97] = np.nan
    expected = suspect_labels(softmax(logits), labels)
    found = stream.suspects(score_columns(logits, labels), labels, 7)
    assert expected.sum() > 100 and (found != expected).sum() <= 1  # float32 against float64 at a threshold


def test_a_large_set_is_sampled_for_its_temperature(
    train: Manifest, config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    looked: list[int] = []
    real = stream.chosen_logits
    monkeypatch.setattr(stream, "TEMPERATURE_ROWS", 30)
    monkeypatch.setattr(stream, "chosen_logits", lambda m, c, i, *a: (looked.append(len(i)), real(m, c, i, *a))[1])
    score_images(train, config, Scoring(tmp_path / "spool"), Job())
    assert sum(looked[:2]) <= 30 and sum(looked[2:]) == 60
