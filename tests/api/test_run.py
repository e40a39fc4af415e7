"""`Run` does what the command line does: the whole demo, settings from the same places, the same records and errors."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcdm_cli import DifficultyEncoder, Run
from dcdm_cli.api.run import GeneratedImages
from dcdm_cli.api.session import dotted
from dcdm_cli.data.manifest import read_manifest, write_manifest
from dcdm_cli.errors import MismatchError, NotFoundError, StorageError, UsageError
from dcdm_cli.files import write_json
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord

from ..commands.conftest import SETTINGS, make_run
from ..commands.test_finetune import prepared
from ..generation.conftest import adapter
from ..generation.fakes import NAMES
from .conftest import Demo

__all__ = ["adapter"]


@pytest.mark.slow
def test_the_whole_demo(demo: Demo) -> None:
    run = demo.run
    assert demo.scored.results["classes"] == 10 and demo.trained.results["images"] == 200
    assert isinstance(demo.made, StageRecord) and demo.made.results["images"] == 20
    batches = list(demo.made)
    assert sum(len(batch.rows) for batch in batches) == 20 and batches[0].images.shape[1:] == (32, 32, 3)
    assert {row.target_difficulty for batch in batches for row in batch.rows} == {0.5}
    verdicts = np.concatenate([batch.verdict.difficulty for batch in batches if batch.verdict])
    assert np.mean(verdicts) == pytest.approx(demo.made.results["measured_mean"], abs=1e-6)
    assert {"adherence", "downstream", "quality", "cost"} <= demo.evaluated.results.keys()
    encoder = DifficultyEncoder.from_pretrained(run.folder.adapter)
    assert encoder.class_names == tuple("0123456789")


def test_the_command_line_and_later_programs_go_on_with_the_same_settings(demo: Demo) -> None:
    written = tomllib.loads(demo.run.folder.config_file.read_text())
    assert written["preset"] == "digits" and written["finetune"]["steps"] == 3
    again = Run(demo.run.folder.path, quiet=True)
    assert again.score().started == demo.scored.started and again.finetune().started == demo.trained.started
    assert again.generate(count=20, difficulty=0.5).started == demo.made.started  # nothing changed


def test_what_the_other_commands_say_is_to_be_had_as_values(demo: Demo, tmp_path: Path) -> None:
    run = Run(shutil.copytree(demo.run.folder.path, tmp_path / "copy"), quiet=True)
    done = {one.stage for one in run.status().stages if one.state == "done"}
    assert {"score", "caption", "finetune", "generate", "evaluate"} <= done
    assert {finding.state for finding in run.check()} == {"fresh"}
    assert run.evaluate("atlas", evaluate={"atlas_classes": 2}).stage == "atlas"
    with pytest.raises(UsageError, match="no job 'atlus'"):
        run.evaluate("atlus")


def test_the_record_of_fine_tuning_holds_its_calibration(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated = replace(demo.trained, stage="calibrate", results={"reachable": [0.2, 0.6]})
    monkeypatch.setattr("dcdm_cli.stages.calibrate.run_calibrate", lambda session: calibrated)
    trained = demo.run.finetune()
    assert trained.results["calibration"] == {"reachable": [0.2, 0.6]} and trained.id == demo.trained.id


@pytest.fixture
def run(adapter: Path, tmp_path: Path) -> Run:
    """Fine-tuned, without having been."""
    make_run(tmp_path / "run", adapter)
    return Run(tmp_path / "run", quiet=True, **SETTINGS)


@pytest.mark.parametrize("format", ["folder", "parquet", "webdataset"])
def test_images_come_back_as_they_were_made(run: Run, format: str) -> None:
    made = run.generate(format=format, count=10)
    assert (
        isinstance(made, GeneratedImages)
        and json.loads((run.folder.path / "records" / "generate.json").read_text())["results"] == made.results
    )
    back, fresh = list(made), list(run.sample(count=10))
    assert [len(batch.rows) for batch in back] == [4, 4, 2]
    assert [row.sample_id for batch in back for row in batch.rows] == [r.sample_id for b in fresh for r in b.rows]
    assert all(np.array_equal(a.images, b.images) and a.verdict is None for a, b in zip(back, fresh, strict=True))
    with pytest.raises(MismatchError, match="holds images of another plan"):
        run.generate(format=format, count=3)
    run.generate(format=format, count=3, force=True)
    with pytest.raises(MismatchError, match="holds other images by now"):
        next(iter(made))


def test_named_sets_are_made_and_read_by_name(run: Run) -> None:
    hard = Run(run.folder.path, name="hard", quiet=True, **SETTINGS)
    made = hard.generate(count=4, difficulty=0.6)
    assert made.folder == run.folder.path / "sets/hard" and run.record("generate") is None
    assert sum(len(batch.rows) for batch in made) == 4 and hard.record("generate") is not None
    with pytest.raises(UsageError, match="cannot name a generated set"):
        Run(run.folder.path, name="../x")


def test_lists_may_be_written_as_flags_are(run: Run) -> None:
    written = Run(run.folder.path, scale={"devices": "0,1"}, evaluate={"arms": "real,dcdm", "seeds": 2}).settings()
    assert written.scale.devices == ("0", "1") and written.evaluate.arms == ("real", "dcdm")
    assert dotted({"devices": 2}, "generate") == {"scale.devices": ["2"]}


def test_two_folders_are_compared_without_a_run(tmp_path: Path) -> None:
    for folder, number in (("a", 8), ("b", 9)):
        (tmp_path / folder).mkdir()
        for index in range(number):
            pixels = np.random.default_rng((number, index)).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    found = Run(tmp_path / "none", quiet=True).compare_images(tmp_path / "a", tmp_path / "b")
    assert found["features"].startswith("packaged") and not (tmp_path / "none").exists()


def test_fine_tuning_captions_by_template_where_nobody_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    (folder.path / "records/caption.json").unlink()
    manifest = read_manifest(folder.samples)
    write_manifest(manifest.with_columns({"caption": [None] * len(manifest)}), folder.samples)
    folder.run(Stage("score", {"data": {}, "score": {"seed": 1}}, {}), lambda: Outcome([folder.samples], "x"))
    Run(folder.path).finetune(steps=1)
    assert "captions: there are none yet (dcdm caption), so these are the template's" in capsys.readouterr().err
    assert folder.record("caption") is not None


def test_sampling_leaves_nothing_behind(run: Run) -> None:
    before = sorted(run.folder.path.rglob("*"))
    (batch,) = run.sample(count=3, difficulty="uniform:0.1,0.4")
    assert batch.images.dtype == np.uint8 and {row.class_name for row in batch.rows} == set(NAMES)
    assert sorted(run.folder.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("verb", "says"), [("generate", "20000 images of 32 pixels need"), ("export", "the exported networks need")]
)
def test_what_does_not_fit_on_the_disk_is_not_begun(
    run: Run, verb: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run.folder.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=says):
        run.generate(count=20_000) if verb == "generate" else run.export()
    assert not [*run.folder.generated.glob("train/*")] and not run.folder.export.exists()


def test_a_plan_is_priced_and_executed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcdm_cli.generation.pricing.PROBE_S", 0.1)
    plan, price, file = run.plan(count=8, gpu_hour_price=2.0)
    assert len(plan) == price.images == 8 and price.money is not None and run.record("generate") is None
    made = run.generate(file)
    assert made.results["plan"] == plan.hash
    with pytest.raises(UsageError, match="--count cannot change a finished plan"):
        run.generate(file, count=3)


def test_settings_come_from_where_the_command_line_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dcdm.toml").write_text("[generate]\nsteps = 7\ntext_guidance = 9\nbatch_size = 3\n")
    monkeypatch.setenv("DCDM_GENERATE__TEXT_GUIDANCE", "8")
    run = Run(tmp_path, preset="sd15", generate={"batch_size": 5})
    generate = run.settings("generate").generate
    assert (generate.steps, generate.text_guidance, generate.batch_size, generate.precision) == (7, 8, 5, "auto")
    assert run.settings("finetune").finetune.gradient_checkpointing  # of the preset
    monkeypatch.setenv("DCDM_RUN", str(tmp_path / "elsewhere"))
    assert Run().folder.path == tmp_path / "elsewhere"
    assert not (tmp_path / "elsewhere").exists()


def test_recorded_settings_win_as_for_the_command(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = Run(tmp_path).settings().finetune.model_dump(mode="json") | {"steps": 77}
    record = StageRecord("finetune", config, {}, [], "", {}, 0, "cpu", 0, "", {})
    write_json(folder.path / "records" / "finetune.json", asdict(record))
    assert Run(tmp_path, finetune={"steps": 5}).settings("generate").finetune.steps == 5
    assert Run(tmp_path).settings("generate").finetune.steps == 77 != Run(tmp_path).settings("finetune").finetune.steps


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"step": 3}, "unknown setting 'step' of generate", "did you mean steps?"),
        ({"finetune": {"step": 3}}, r"unknown setting 'finetune\.step'", "did you mean"),
        ({"steps": 0}, r"generate\.steps = 0", "dcdm config show"),
        ({"steps": None}, r"generate\.steps = 'none'", "dcdm config show"),
    ],
)
def test_slips_are_named(run: Run, settings: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        run.generate(**settings)
    assert hint in caught.value.hint and not run.folder.generated.exists()


def test_names_say_what_they_are(tmp_path: Path) -> None:
    assert dotted({"score": False, "ratio": None, "seed": 3}, "generate") == {
        "generate.score": False, "generate.ratio": "none", "seed": 3,
    }  # fmt: skip
    assert dotted({"score": {"model_args": {"a": 1}}, "generate.steps": 2}) == {
        "score.model_args": {"a": 1}, "generate.steps": 2,
    }  # fmt: skip
    with pytest.raises(UsageError, match="unknown setting 'steps'") as caught:
        Run(tmp_path, steps=3)
    assert "finetune={'steps': ...}" in caught.value.hint


def test_a_forgotten_stage_is_named(tmp_path: Path) -> None:
    for forgotten in (Run(tmp_path).caption, Run(tmp_path).generate, Run(tmp_path).evaluate):
        with pytest.raises(NotFoundError, match="has no finished") as caught:
            forgotten()
        assert "run it first: dcdm" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_several_devices_are_the_commands(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several devices") as caught:
        Run(tmp_path, scale={"devices": ("cpu", "cpu")}).finetune()
    assert caught.value.hint.endswith("--devices cpu,cpu")
