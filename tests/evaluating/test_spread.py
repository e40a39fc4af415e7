"""Scoring and adherence by worker processes give what this process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcdm_cli.data.manifest import SCORE_COLUMNS, read_manifest
from dcdm_cli.run.session import Session
from dcdm_cli.stages.adherence import measured_adherence
from dcdm_cli.stages.evaluation_data import checked_data
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.judge import open_judge
from dcdm_cli.stages.score import run_score

from .conftest import session_of

WORKER = {"scale__devices": ("1",), "threads": 1}


@pytest.fixture
def one_thread() -> object:
    """On a CPU, sums of other lengths are other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield None
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_worker_scores_the_same(finished: Path, tmp_path: Path, one_thread: object) -> None:
    record = run_score(session_of(tmp_path / "run", **WORKER))
    ours, theirs = (read_manifest(folder / "samples.parquet") for folder in (tmp_path / "run", finished))
    for name in SCORE_COLUMNS:
        np.testing.assert_allclose(
            ours.column(name).astype(float), theirs.column(name).astype(float), atol=1e-4, err_msg=name
        )
    assert record.results["method"] == "crossfit" and not (tmp_path / "run/checkpoints/scorer").exists()
    assert (tmp_path / "run/scorer/scorer.json").is_file()


@pytest.mark.slow
def test_a_worker_measures_the_same_adherence(run: Path, one_thread: object) -> None:
    here = adherence(session_of(run))
    (run / "records" / "adherence.json").unlink()
    there = adherence(session_of(run, **WORKER))
    assert here["n"] == 20 and (run / "evaluation" / "figures" / "atlas.png").is_file()
    for ours, theirs in zip(there["targets"], here["targets"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert there["frontier"] == here["frontier"] and there["classes"] == here["classes"]


def adherence(session: Session) -> dict[str, Any]:
    data, job = checked_data(session), open_job(session)
    return measured_adherence(session, data, open_judge(session, data.manifest, job), job).results
