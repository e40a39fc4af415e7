"""What the comparison of arms will take, told before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest, write_manifest
from dcdm_cli.run.progress import Job
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.evaluate import foretold, head_warnings
from dcdm_cli.stages.foretold import Pieces, Teller, finetune_pieces
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.score import _known


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


def samples(run: RunFolder) -> None:
    rows = [{"path": f"{i}.png", "label": i % 3, "class_name": "abc"[i % 3]} for i in range(6)]
    write_manifest(Manifest.from_rows(rows, ("a", "b", "c")), run.samples)


def test_fine_tuning_lists_its_pieces_before_it_begins(run: RunFolder) -> None:
    samples(run)
    run.scorer.mkdir()
    settings = {"finetune__steps": 300, "finetune__batch_size": 8, "calibrate__points": 9, "calibrate__images": 30}
    auto = session(run, **settings, finetune__strength="auto", finetune__own_draws=500, finetune__own_steps=200,
                   strength__probe_budget=400, strength__lora_scales=(0.6,))  # fmt: skip
    assert finetune_pieces(auto).told == (
        "300 steps of 8 images", "4 probes of 100 images to choose how far to go",
        "500 own draws and 200 steps to learn from them", "9 x 30 images of calibration",
    )  # fmt: skip
    assert (finetune_pieces(auto).steps, finetune_pieces(auto).images) == (500, 400 + 500 + 270)
    plain = session(run, **settings, finetune__strength="40", finetune__conditioning="none", finetune__own_draws=500)
    assert finetune_pieces(plain).told == ("40 steps of 8 images",) and finetune_pieces(plain).images == 0


def test_how_long_all_of_it_takes_is_said_once_a_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = iter(range(100)), list[str]()
    monkeypatch.setattr("dcdm_cli.pace.time.monotonic", lambda: float(next(clock)))
    long = "finetune: about 5 min for 300 steps, then about 50 min for 1,200 images, by the first steps"
    for steps, images, expected in ((300, 1200, [long]), (60, 4, [])):
        told = Teller(Pieces(steps, 4, images, 30, ()), Job(note=said.append))
        for done in range(12):
            told.progress("encoding captions", done, 12)
            told.progress("fine-tuning", done, steps)
        assert said == expected
        said.clear()


def test_what_a_job_warns_of_is_said_even_when_little_is_to_be_read(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    job = open_job(session(run, device="cpu"))
    job.note("all is well")
    job.warn("the downstream classifier guesses")
    said = capsys.readouterr().err
    assert "the downstream classifier guesses" in said and "all is well" not in said


def test_classes_that_are_exchanged_are_said_by_score(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"path": f"{i}.png", "label": i % 8, "class_name": "abcdefgh"[i % 8], "split": "train"} for i in range(80)]
    train = Manifest.from_rows(rows, tuple("abcdefgh"))
    answers = np.array([0, 3, 2, 1, 4, 5, 6, 7])[train.column("label")]
    found = _known(session(run), train, {"predicted": answers})["competence"]
    assert found["verdict"] == "good" and found["exchanged"] == [["b", "d"]]
    said = " ".join(capsys.readouterr().err.split())
    assert "each for the other, 'b' and 'd'" in said and "--class-map" in said


def test_of_a_classifier_of_ones_own_score_says_what_is_not_known(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"path": f"{i}.png", "label": i % 2, "class_name": "ab"[i % 2], "split": "train"} for i in range(60)]
    train = Manifest.from_rows(rows, ("a", "b"))
    for settings, told in (({"score__classifier": "mine.onnx"}, False), ({}, True)):
        opened = replace(session(run, **settings), console=Console())
        found = _known(opened, train, {"predicted": train.column("label")})["competence"]
        said = " ".join(capsys.readouterr().err.split())
        assert ("right that it did not learn from;" in said) == told != ("whether it learned from them" in said)
        assert ("seen" in found) == (not told)


def test_seeds_of_heads_are_said_to_prove_little(run: RunFolder) -> None:
    assert head_warnings(session(run, evaluate__seeds=6).config) == []
    assert head_warnings(session(run, evaluate__seeds=1, downstream__method="features").config) == []
    [said] = head_warnings(session(run, evaluate__seeds=6, downstream__method="features").config)
    assert "the same for every seed" in said
