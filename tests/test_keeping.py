"""What took long is not replaced without a word, and what did not is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dcdm_cli.errors import MismatchError
from dcdm_cli.files import write_text
from dcdm_cli.run.keeping import followers, refuse_replacing
from dcdm_cli.run.standing import standing_of
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.export import _keep_what_took_long as keep_export
from dcdm_cli.stages.judge import _keep_what_took_long


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    made = {}
    for name, inputs in {"score": (), "caption": ("score",), "finetune": ("score", "caption"), "judge": ()}.items():
        stage = Stage(name, {"steps": 1}, {one: made[one] for one in inputs})
        made[name] = folder.run(stage, lambda: Outcome([], ""))[0].id
    return folder


def took(run: RunFolder, stage: str, seconds: float) -> None:
    file = run.path / "records" / f"{stage}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": seconds}))


def other(run: RunFolder, stage: str) -> Stage:
    return Stage(stage, {"steps": 2}, run.require(stage).inputs)


def test_what_was_made_from_a_stage_follows_it(run: RunFolder) -> None:
    assert [record.stage for record in followers(run, "score")] == ["caption", "finetune"]
    assert [record.stage for record in followers(run, "finetune")] == []


def test_what_took_long_is_named_with_what_it_cost(run: RunFolder) -> None:
    took(run, "finetune", 7500)
    with pytest.raises(MismatchError, match="finetune would be stale") as caught:
        refuse_replacing(run, other(run, "score"), "scoring birds")
    assert (
        "scoring birds replaces what score made" in caught.value.message and "finetune took 2 h" in caught.value.message
    )
    assert "--force" in caught.value.hint and "--run" in caught.value.hint


@pytest.mark.parametrize("stage", ["score", "caption", "finetune"])
def test_what_took_less_than_a_minute_is_made_again(run: RunFolder, stage: str) -> None:
    for name in ("score", "caption", "finetune"):
        took(run, name, 59)
    refuse_replacing(run, other(run, stage), "this")


def test_a_report_that_took_long_is_only_out_of_date(run: RunFolder) -> None:
    inputs = {"finetune": run.require("finetune").id}
    run.run(Stage("evaluate", {}, inputs), lambda: Outcome([], ""))
    took(run, "evaluate", 7500)
    refuse_replacing(run, other(run, "score"), "this")


@pytest.mark.parametrize("stage", ["score", "finetune"])
def test_what_a_stage_made_itself_counts(run: RunFolder, stage: str) -> None:
    took(run, stage, 61)
    with pytest.raises(MismatchError, match=f"{stage} took"):
        refuse_replacing(run, other(run, stage), "this")


def test_damage_is_no_leave_to_replace_with_other_settings(run: RunFolder) -> None:
    config, weights = run.adapter / "config.json", run.adapter / "weights"
    write_text(config, "{}")
    write_text(weights, "w")
    stage = Stage("finetune", {"steps": 1}, run.require("finetune").inputs)
    run.run(stage, lambda: Outcome([run.adapter, weights], ""), force=True)
    took(run, "finetune", 7500)
    write_text(config, "{} ")
    weights.unlink()
    with pytest.raises(MismatchError, match="finetune took 2 h"):
        refuse_replacing(run, other(run, "finetune"), "this")
    refuse_replacing(run, stage, "this")  # as it was: that is the remedy
    assert run.is_fresh(stage) is None


def test_a_figure_that_is_gone_changes_nothing(run: RunFolder) -> None:
    figure = run.figures / "loss.png"
    write_text(figure, "png")
    stage = other(run, "finetune")
    run.run(stage, lambda: Outcome([figure], ""))
    took(run, "finetune", 7500)
    figure.unlink()
    record = run.require("finetune")
    assert run.is_fresh(stage) and [*run.changes(record)] == run.gone(record) == []
    assert run.gone(record, for_people=True) == ["figures/loss.png"]
    assert {one.stage: one.state for one in standing_of(run).stages}["finetune"] == "done"
    with pytest.raises(MismatchError, match="finetune took 2 h"):
        refuse_replacing(run, Stage("finetune", {"steps": 3}, stage.inputs), "this")


def exported(run: RunFolder, seconds: float, engines: list[str]) -> Stage:
    """An export with engines, as it would be recorded."""
    config = {"precision": "fp16", "target": "tensorrt", "batch": [1], "refit": False}
    inputs = {"tensorrt": "11 on H200"}
    stage = Stage("export", config, {"finetune": run.require("finetune").id, **inputs})
    run.run(stage, lambda: Outcome([], "", {"engines": engines}))
    took(run, "export", seconds)
    return stage


def test_engines_that_took_long_are_not_dropped_for_other_settings(run: RunFolder) -> None:
    stage = exported(run, 900, ["denoiser.b1.engine"])
    graphs = {"finetune": stage.inputs["finetune"]}
    keep_export(run, replace(stage, config=stage.config | {"batch": [1, 8]}))  # one more beside it
    keep_export(run, replace(stage, config=stage.config | {"target": "onnx"}, inputs=graphs))
    for other in (
        {"config": stage.config | {"precision": "fp32"}},
        {"config": stage.config | {"refit": True}},
        {"inputs": stage.inputs | {"tensorrt": "12 on H200"}},
    ):
        with pytest.raises(MismatchError, match="export took 15 min"):
            keep_export(run, replace(stage, **other))


def test_graphs_that_took_long_are_not_dropped_either_and_engines_may_be_added(run: RunFolder) -> None:
    stage = exported(run, 900, [])
    graphs = {"finetune": stage.inputs["finetune"]}
    run.run(replace(stage, inputs=graphs), lambda: Outcome([], "", {"engines": []}))
    took(run, "export", 900)
    keep_export(run, stage)
    keep_export(run, replace(stage, config=stage.config | {"refit": True, "batch": [8]}))
    with pytest.raises(MismatchError, match="export took 15 min"):
        keep_export(run, replace(stage, config=stage.config | {"precision": "fp32"}))


def test_an_export_that_took_less_than_a_minute_gives_way(run: RunFolder) -> None:
    stage = exported(run, 59, ["denoiser.b1.engine"])
    keep_export(run, replace(stage, config=stage.config | {"precision": "fp32"}))


def test_a_judge_that_took_long_is_not_replaced_for_other_settings(run: RunFolder) -> None:
    took(run, "judge", 7500)
    with pytest.raises(MismatchError, match="judge took 2 h"):
        _keep_what_took_long(run, other(run, "judge"))
    _keep_what_took_long(run, Stage("judge", {"steps": 2}, {"images": "others"}))  # those were asked for before


def test_nothing_is_asked_where_nothing_would_change_or_all_is_stale_already(run: RunFolder) -> None:
    took(run, "finetune", 7500)
    record = run.require("finetune")
    refuse_replacing(run, Stage("finetune", record.config, record.inputs), "this")
    run.run(other(run, "score"), lambda: Outcome([], ""))
    refuse_replacing(run, Stage("finetune", {"steps": 2}, record.inputs), "this")
