"""Scripts of the experiments: what they hand to `dcdm`, and what a result says about itself."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import dcdm_cli
from dcdm_cli.evaluation.experiments import built_in_experiments, find_experiment, parse_experiment
from dcdm_cli.reports.cases import measured_cases
from dcdm_cli.run.resolution import resolve

FOLDER = Path(dcdm_cli.__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_every_setting_runs_every_experiment(script) -> None:
    settings = script("digits_settings")
    assert set(settings.ORDER) == set(built_in_experiments())
    for setting in settings.SETTINGS.values():
        assert set(setting.seeds) == set(settings.ORDER) and set(setting.short) <= set(settings.ORDER)


def test_a_short_ablation_changes_steps_and_ratio_of_all_arms_alike(script) -> None:
    settings = script("digits_settings")
    short = parse_experiment(settings.shortened("ablation", settings.Short(30, 0.5)), "here", "ablation-short")
    whole = find_experiment("ablation")
    assert [arm.name for arm in short.arms] == [arm.name for arm in whole.arms]
    assert (short.baseline, short.focus) == (whole.baseline, whole.focus) and "30 steps" in short.about
    for arm, other in zip(short.arms, whole.arms, strict=True):
        if arm.source == "none":
            continue
        mine, theirs = short.adapter(arm.adapter), whole.adapter(other.adapter)
        assert mine.finetune == {**theirs.finetune, "steps": 30} and mine.scores == theirs.scores
        assert (arm.ratio, arm.calibrated, arm.attempts) == (0.5, other.calibrated, other.attempts)


def test_an_experiment_of_its_own_can_be_run() -> None:
    for file in set(FOLDER.glob("*.toml")) - {FOLDER / "claims.toml"}:
        experiment = parse_experiment(file.read_text("utf-8"), str(file), file.stem)
        used = {arm.adapter for arm in experiment.arms if arm.source == "generated"}
        assert used and all(experiment.adapter(key) for key in used)


def test_the_cases_in_the_package_are_those_of_the_results(script, tmp_path: Path) -> None:
    pays = script("where_control_pays")
    named = tomllib.loads((FOLDER / "claims.toml").read_text("utf-8"))["cases"]
    assert tuple(pays.cases_of(named, FOLDER / "results")) == measured_cases()
    assert pays.cases_of(named, tmp_path) == []
    pays.draw(measured_cases(), tmp_path / "cases.png")
    assert (tmp_path / "cases.png").stat().st_size > 1000


def test_the_claims_say_what_the_results_say(script, tmp_path: Path) -> None:
    claims = script("claims")
    asked = tomllib.loads((FOLDER / "claims.toml").read_text("utf-8"))["claims"]
    rows = [*claims.claim_rows(asked, FOLDER / "results")]
    written = json.loads((FOLDER / "results" / "claims.json").read_text("utf-8"))["tables"][0]
    assert written["rows"] == rows and len(rows) == sum(len(claim["rows"]) for claim in asked)
    assert {row[5] for row in claims.claim_rows(asked, tmp_path)} == {"not measured"}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("better", "holds at 8 seeds"), ("worse", "does not hold"), ("cannot tell", "cannot tell at 8 seeds"),
        ("points to better", "points to it at 8 seeds"),
    ],
)  # fmt: skip
def test_a_claim_holds_where_its_arm_is_better(script, tmp_path: Path, verdict: str, said: str) -> None:
    pair = {"arm": "a", "against": "b", "difference_mean": 0.0123, "difference_ci95": [0.002, 0.02], "p_value": 0.0005}
    accuracy = {"a": [0.5 + seed / 200 for seed in range(8)], "b": [0.4 + seed / 201 for seed in range(8)]}
    arms = [{"name": name, "accuracy": found} for name, found in accuracy.items()]
    cells = [{"ratio": 1.0, "classifier_name": "x", "arms": arms, "paired": [{**pair, "seeds": 8, "verdict": verdict}]}]
    (tmp_path / "one.json").write_text(json.dumps({"document": {"cells": cells}}))
    row = {"data": "digits", "result": "one", "arm": "a", "against": "b"}
    asked = [{"claim": "A helps", "paper": "yes", "rows": [row]}]
    (made,) = script("claims").claim_rows(asked, tmp_path)
    assert made == ["A helps", "yes", "digits", "+1.2 [0.2, 2.0]", "< 0.001", said, "`one.json`"]
    # a pair that the experiment has not compared is, from the accuracies of its seeds
    (other,) = script("claims").claim_rows([{**asked[0], "rows": [{**row, "arm": "b", "against": "a"}]}], tmp_path)
    assert other[3].startswith("-10.0 [") and other[5] == "does not hold"
    with pytest.raises(SystemExit, match="has no arms 'a' and 'c'"):
        list(script("claims").claim_rows([{**asked[0], "rows": [{**row, "against": "c"}]}], tmp_path))


def test_a_claim_may_take_series_together_and_compare_numbers_of_images(script, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        cells = [
            {
                "ratio": ratio, "classifier_name": "x", "paired": [],
                "arms": [
                    {"name": arm, "accuracy": [0.5 + shift + ratio / 100 + seed / 200 for seed in range(4)]}
                    for arm, shift in (("a", 0.1 + number / 100), ("b", 0.0))
                ],
            }
            for ratio in (1.0, 2.0)
        ]  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"document": {"cells": cells}}))
    row = {"data": "digits", "ratio": 1.0, "arm": "a", "against": "b"}
    rows = [{**row, "result": ["one", "two"]}, {**row, "result": "one", "against_ratio": 2.0}]
    together, smaller = script("claims").claim_rows([{"claim": "A helps", "paper": "yes", "rows": rows}], tmp_path)
    assert together[3].startswith("+10.5 [") and together[5:] == ["holds at 8 seeds", "`one.json`, `two.json`"]
    assert smaller[3].startswith("+9.0 ") and smaller[5] == "cannot tell at 4 seeds"


def test_a_result_says_where_it_comes_from(script, tmp_path: Path) -> None:
    common = script("common")
    file = common.save({**common.provenance("dcdm y"), "document": {}}, "x", tmp_path)
    content = json.loads(file.read_text("utf-8"))
    assert content["command"] == "dcdm y" and "cores" in content["hardware"]
    assert set(content["versions"]) == {"torch", "diffusers", "peft", "timm"} and len(content["date"]) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_steps_are_done_once_and_what_does_not_fit_waits(script, tmp_path: Path) -> None:
    pieces, done = script("pieces"), []
    steps = [
        pieces.Step(name, lambda n=name: done.append(n) or {"n": n}, needs) for name, needs in (("a", 0), ("b", 500))
    ]
    assert pieces.Done(tmp_path).run(steps, pieces.Clock(60)) == "b" and done == ["a"]
    assert pieces.Done(tmp_path).run(steps, pieces.Clock(None)) is None and done == ["a", "b"]
    kept = pieces.Done(tmp_path)
    assert kept.done["b"]["n"] == "b" and kept.run(steps, pieces.Clock(1)) is None


def test_every_image_has_one_purpose(script) -> None:
    import numpy as np

    data = script("cifar10_data")
    labels = np.repeat(np.arange(10), 3000)
    rows = {name: set(found.tolist()) for name, found in data.assign(labels).items()}
    assert len(rows["target"]) == 5000 and len(rows["small"]) == 1000 and len(rows["judge"]) == 20_000
    assert rows["small"] | rows["rest"] == rows["target"] and not rows["small"] & rows["rest"]
    assert rows["base"] | rows["target"] == set(range(30_000)) and not rows["base"] & rows["target"]
    assert rows["judge"] <= rows["base"]


def test_what_a_cifar_run_is_told_are_settings_of_dcdm(script, tmp_path: Path) -> None:
    cifar, told = script("cifar10_run"), {}
    for name in cifar.SCALES:
        job = cifar.Experiments(tmp_path, tmp_path, name, tmp_path, script("pieces").Clock(None))
        for target in job.scale.seeds:
            (tmp_path / "dcdm.toml").write_text(job.toml(target), "utf-8")
            told[name, target] = resolve(run_file=tmp_path / "dcdm.toml").config
    assert told["cpu", "small"].downstream.steps < told["cpu", "target"].downstream.steps
    assert told["cpu", "small"].judge == told["cpu", "target"].judge


def test_guidance_is_the_pair_that_is_best_on_validation_images(script, tmp_path: Path) -> None:
    cifar, common = script("cifar10_run"), script("common")
    experiment = parse_experiment(cifar.guidance_experiment(), "here", "settings")
    asked = [experiment.adapter(arm.adapter).generate for arm in experiment.arms[1:]]
    assert len(asked) == len(cifar.TEXT) * len(cifar.DIFFICULTY) and experiment.arms[0].source == "none"
    job = cifar.Experiments(tmp_path, tmp_path, "tiny", tmp_path, script("pieces").Clock(None))
    assert job.settings("small")["generate"].items() >= cifar.pair(*cifar.GUESS).items()
    common.save({"guidance": asked[-1]}, "chosen", tmp_path)
    assert job.settings("small")["generate"].items() >= asked[-1].items()
