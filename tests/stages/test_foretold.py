"""What the comparison of arms will take, told before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.console import Console
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.evaluate import foretold, head_warnings


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def session(run: RunFolder, **flags: object) -> Session:
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return Session(run, resolve(flags=given), Console(quiet=True), False, False, given)


def judged(run: RunFolder, opened: Session, seconds: float) -> None:
    settings = opened.config.judge.model_dump(mode="json")
    record, _ = run.run(Stage("judge", settings, {}), lambda: Outcome([], ""))
    file = run.path / "records" / "judge.json"
    file.write_text(file.read_text().replace(f'"seconds": {record.seconds}', f'"seconds": {seconds}'))


def test_as_long_as_the_judge_took_for_each_of_them(run: RunFolder) -> None:
    opened = session(run, score__steps=100, downstream__steps=200, evaluate__workers=2)
    judged(run, opened, 60.0)
    assert foretold(opened, 9) == (
        "downstream: 9 classifiers (resnet18, 224 px, 200 steps each); as the judge went, about 9 min where none is "
        "finished yet"
    )


def test_no_guess_from_a_judge_of_another_kind(run: RunFolder) -> None:
    judged(run, session(run), 60.0)
    assert foretold(session(run, downstream__image_size=64), 3) == (
        "downstream: 3 classifiers (resnet18, 64 px, 2,000 steps each)"
    )


def test_seeds_of_heads_are_said_to_prove_little(run: RunFolder) -> None:
    assert head_warnings(session(run, evaluate__seeds=6).config) == []
    assert head_warnings(session(run, evaluate__seeds=1, downstream__method="features").config) == []
    [said] = head_warnings(session(run, evaluate__seeds=6, downstream__method="features").config)
    assert "the same for every seed" in said
