"""What an evaluation will make is said before it begins, and what is made is what was said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcdm_cli.console import Console
from dcdm_cli.run.progress import Job
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.evaluate import run_evaluate, whole_evaluation
from dcdm_cli.stages.evaluation_data import checked_data
from dcdm_cli.stages.experiments.ahead import ToMake

from .conftest import session_of


def took(run: Path, stage: str, seconds: float) -> None:
    file = run / "records" / f"{stage}.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"seconds": seconds}), "utf-8")


def test_what_takes_long_is_said_with_its_time(run: Path) -> None:
    took(run, "finetune", 100.0)
    took(run, "generate", 40.0)  # 20 images
    folder = RunFolder(run)
    assert ToMake(0, 0, 0, 4).told(folder) == "4 classifiers"
    assert ToMake(1, 0, 0, 4).told(folder) == "1 generator to fine-tune; 4 classifiers"
    assert ToMake(1, 2, 1000, 6, 200).told(folder) == (
        "200 adherence images; 1 generator to fine-tune; 2 sets of 1,000 images in all; 6 classifiers; about 42 min as "
        "the run's own stages went, classifiers apart"
    )


def test_what_there_is_to_make_is_counted_until_it_is_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = session_of(run, evaluate__arms=["real", "plain", "dcdm"])
    object.__setattr__(session, "console", Console())
    data = checked_data(session)
    assert whole_evaluation(session, data, Job()) == ToMake(1, 4, 80, 6, 20)
    run_evaluate(session)
    said = capsys.readouterr().err
    head = "evaluate: 20 adherence images; 1 generator to fine-tune; 4 sets of 80 images in all; 6 classifiers"
    assert head in said and said.index(head) < said.index("downstream: 6 classifiers")
    [name] = [folder.name for folder in (run / "evaluation" / "adapters").iterdir()]
    assert f"{name}: 2 steps of " in said
    assert whole_evaluation(session, data, Job()) == ToMake(0, 0, 0, 6, 0)
