"""What learns from an arm: a network, or a head on frozen features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.data.digits import digit_images
from dcdm_cli.errors import NumericalError, UsageError
from dcdm_cli.evaluation.downstream import NOTHING, Arm, Samples, Trial, TrialLedger, arm_key, run_arms
from dcdm_cli.evaluation.learners import learner_name, learner_settings
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint
from dcdm_cli.run.settings import ClassifierConfig, DownstreamConfig

HEAD = DownstreamConfig(method="features", feature_size=32)
REAL = Arm("real", lambda seed: NOTHING, "")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Zeros and ones: twenty to learn from, forty to test with."""
    folder = tmp_path_factory.mktemp("pair")
    images, labels = digit_images()
    rows = np.stack([np.flatnonzero(labels == digit)[:30] for digit in (0, 1)], axis=1).ravel()
    paths = [folder / f"{row}.png" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        Image.fromarray(images[row]).convert("RGB").save(path)
    train, test = Samples(paths[:20], labels[rows[:20]]), Samples(paths[20:], labels[rows[20:]])
    return Trial(train, test, 2, "pair", focus="dcdm", cache=folder / "features")


def test_a_head_learns_in_no_time_and_looks_at_each_image_once(trial: Trial, tmp_path: Path) -> None:
    found = run_arms([REAL], trial, HEAD, [0, 1], ledger=TrialLedger(tmp_path / "ledger", print), job=Job())
    assert found["arms"][0]["accuracy_mean"] > 0.8 and found["steps"] is None
    assert found["classifier"] == "linear head on packaged features" and found["competence"]["verdict"] == "good"
    assert trial.cache is not None
    before = {file: file.stat().st_mtime_ns for file in trial.cache.rglob("*.safetensors")}
    again = run_arms([REAL], trial, HEAD, [0], ledger=TrialLedger(tmp_path / "other", print), job=Job())
    assert again["arms"][0]["accuracy"] == found["arms"][0]["accuracy"][:1]
    assert {file: file.stat().st_mtime_ns for file in trial.cache.rglob("*.safetensors")} == before


def test_keys_depend_on_what_counts_alone(trial: Trial) -> None:
    """A ledger of before there were heads still holds, and a head does not depend on the steps of a network."""
    plain = ClassifierConfig(steps=7)
    assert learner_settings(DownstreamConfig(steps=7)) == learner_settings(plain) == fingerprint(plain)
    keys = [arm_key(REAL, trial, config, 0) for config in (HEAD, HEAD.model_copy(update={"steps": 3}))]
    assert keys[0] == keys[1] != arm_key(REAL, trial, DownstreamConfig(), 0)


def test_names() -> None:
    assert learner_name(DownstreamConfig()) == "resnet18"
    assert learner_name(DownstreamConfig(model="packaged", pretrained=True)) == "packaged, pretrained"


def test_augmentation_is_refused_where_it_would_do_nothing(trial: Trial) -> None:
    arm = replace(REAL, name="augmented", classifier={"mixup": 0.2})
    with pytest.raises(UsageError, match="arm augmented"):
        arm_key(arm, trial, HEAD, 0)


def test_a_baseline_that_guesses_ends_the_comparison(trial: Trial, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blind = replace(trial, real=replace(trial.real, labels=rng.permutation(trial.real.labels)), content="blind")
    labels = np.tile([0, 0, 1, 1], 10)  # of the test images: half of them wrong
    blind = replace(blind, test=replace(blind.test, labels=labels))
    ledger, calls = TrialLedger(tmp_path / "ledger", print), []

    def extra(seed: int) -> Samples:
        calls.append(seed)
        return NOTHING

    arms = [REAL, Arm("dcdm", extra, "made")]
    for _ in range(2):  # the second time the ledger knows it
        with pytest.raises(NumericalError, match="no better than guessing"):
            run_arms(arms, blind, HEAD, [0], ledger=ledger, job=Job())
    assert not calls
    said: list[str] = []
    config = HEAD.model_copy(update={"at_chance": "warn"})
    run_arms(arms, blind, config, [0], ledger=ledger, job=Job(warn=said.append))
    assert calls and any("no better than guessing" in line for line in said)
