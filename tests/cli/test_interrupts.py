"""Stopped or killed at any moment: what was finished stays, and the same command goes on to the same result."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from dcdm_cli.data.manifest import read_manifest

from .conftest import FinishedJob, new_run
from .runner import Command, run, started

KILLS = 4
LORA = "adapter/pytorch_lora_weights.safetensors"
# What each stage makes, and what of it must not depend on how often it was interrupted.
MADE = {
    "score": ["samples.parquet", "scorer"],
    "caption": ["samples.parquet"],
    "finetune": [LORA, "adapter/difficulty_encoder.safetensors"],
    "generate": ["generated/samples.parquet", "generated/train", "generated/journal.jsonl", "generated/plan.parquet"],
}


def contents(run_folder: Path, stage: str) -> dict[str, Any]:
    found = {}
    for made in MADE[stage]:
        path = run_folder / made
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                whole = tensors if file.suffix == ".safetensors" else Path.read_bytes
                found[file.relative_to(run_folder).as_posix()] = whole(file)
    return found


def tensors(file: Path) -> dict[str, bytes]:
    """safetensors writes its metadata in another order every time."""
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}


def leftovers(run_folder: Path) -> list[Path]:
    return [path for path in run_folder.rglob(".*") if ".part" in path.name]


@pytest.fixture
def begun(scored: Path, job: FinishedJob, photos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run folder in which the stage of the test has not been run."""
    stage = request.node.callspec.params["stage"]
    if stage == "score":
        return new_run(tmp_path / "fresh")
    if stage == "generate":
        shutil.copytree(job.run / "adapter", scored / "adapter")
        shutil.copy(job.run / "records" / "finetune.json", scored / "records")
    return scored


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["score", "finetune", "generate"])
def test_killed_at_random_moments(begun: Path, photos: Path, tmp_path: Path, stage: str) -> None:
    """kill -9, again and again. Batches of one and a checkpoint per step: as many places to be hit as there can be."""
    options = {"score": [str(photos)], "finetune": ["--checkpoint-every", "1"], "generate": ["--batch-size", "1"]}
    words = [stage, *options[stage], "--run"]
    undisturbed = Path(shutil.copytree(begun, tmp_path / "undisturbed"))
    clock = time.monotonic()
    run(*words, undisturbed)
    seconds = time.monotonic() - clock
    moments = random.Random(7)
    for number in range(KILLS):
        with started(*words, begun) as command:
            command.process.join(seconds * moments.uniform(number / KILLS, 1))
            command.process.kill()
    for name in MADE[stage]:  # what is there under its own name is whole
        if name.endswith(".parquet") and (begun / name).exists():
            read_manifest(begun / name) if "samples" in name else None
    run(*words, begun)
    assert contents(begun, stage) == contents(undisturbed, stage)
    assert leftovers(begun) == [] and not list((begun / "checkpoints").glob("*"))


@pytest.mark.parametrize("stage", ["finetune"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_fine_tuning_that_was_stopped_goes_on_exactly(
    begun: Path, job: FinishedJob, stage: str, name: str, code: int
) -> None:
    with started("finetune", "--steps", "30", "--json", "--run", begun) as command:
        command.wait_until(lambda: list((begun / "checkpoints").rglob("state.json")))
        command.signal(name)
        said = command.finish()
    assert said.returncode == code and said.stdout == ""
    assert f"stopped by {name}; checkpoint at step" in said.stderr and "Traceback" not in said.stderr
    error = json.loads(said.stderr.splitlines()[-1])
    assert (error["code"], error["kind"]) == (code, "InterruptedRunError") and "same command" in error["hint"]
    assert not (begun / "adapter").exists() and not (begun / "records" / "finetune.json").exists()
    assert "fine-tuning: 30/30" in run("finetune", "--steps", "30", "--run", begun).stderr


@pytest.mark.parametrize("stage", ["score"])
def test_scoring_that_was_stopped_keeps_its_classifiers(begun: Path, photos: Path, stage: str) -> None:
    words = ["score", photos, "--set", "score.steps=60", "--folds", "3", "--run", begun]
    with started(*words) as command:
        command.wait_until(lambda: list((begun / "checkpoints" / "scorer").glob("*/folds/*/0")))
        command.signal("SIGHUP")
        said = command.finish()
    assert said.returncode == 143 and re.search(r"classifiers are trained|goes on at step|has not begun", said.stderr)
    assert not (begun / "samples.parquet").exists() and not (begun / "dcdm.toml.part").exists()
    kept = list((begun / "checkpoints" / "scorer").glob("*/folds/*/*/model.safetensors"))
    assert 1 <= len(kept) < 3
    run(*words)
    assert not (begun / "checkpoints" / "scorer").exists() and read_manifest(begun / "samples.parquet")


@pytest.mark.parametrize("stage", ["score"])
def test_a_signal_within_a_classifier_costs_seconds_and_nothing_that_was_learnt(
    begun: Path, photos: Path, stage: str
) -> None:
    """One classifier would take an hour here."""
    with started("score", photos, "--set", "score.steps=1000000", "--json", "--run", begun) as command:
        command.wait_until(lambda: command.streams[1].exists() and "cross-fitting: " in command.streams[1].read_text())
        command.signal("SIGINT")
        said = command.finish(timeout=5)
    assert said.returncode == 130 and "goes on at step" in said.stderr
    assert len(list((begun / "checkpoints" / "scorer").rglob("step-*/state.json"))) == 1


@pytest.mark.parametrize("stage", ["finetune"])
def test_forced_fine_tuning_goes_on_with_its_own_checkpoint(begun: Path, stage: str) -> None:
    words = ["finetune", "--steps", "30", "--force", "--run", begun]
    with started(*words) as command:
        command.wait_until(lambda: list((begun / "checkpoints").rglob("state.json")))
        command.signal("SIGINT")
        stopped = command.finish().stderr
    assert "checkpoint at step" in stopped
    (state,) = sorted((begun / "checkpoints").rglob("state.json"))[-1:]
    told = json.loads(state.read_text()) | {"skipped": 7}  # what goes on with it tells it
    del told["state_sha256"]  # as a checkpoint from before there was one
    state.write_text(json.dumps(told))
    run(*words)
    assert json.loads((begun / "records" / "finetune.json").read_text())["results"]["skipped_steps"] == 7


@pytest.mark.parametrize("stage", ["generate"])
def test_a_second_signal_stops_at_once(begun: Path, stage: str) -> None:
    with started("generate", "--count", "200", "--steps", "50", "--run", begun) as command:
        command.wait_until(lambda: (begun / "generated" / "plan.parquet").is_file())
        command.signal("SIGINT")
        command.wait_until(lambda: "once more to stop now" in command.streams[1].read_text())
        command.signal("SIGTERM")
        said = command.finish(timeout=60)  # its 200 images would take minutes
    quicker = "stopped by SIGINT" in said.stderr  # the first one was obeyed, after a step, before the second came
    assert said.returncode == (130 if quicker else 143) and "Traceback" not in said.stderr
    assert leftovers(begun / "records") == []


def test_a_stopped_evaluation_keeps_the_classifiers_it_has(copy: Path) -> None:
    words = ["evaluate", "--seeds", "4", "--run", copy]
    ledger = copy / "evaluation" / "downstream.jsonl"
    before = len(ledger.read_text().splitlines())
    with started(*words) as command:
        command.wait_until(lambda: len(ledger.read_text().splitlines()) > before)
        command.signal("SIGINT")
        said = command.finish()
    assert said.returncode == 130 and "stopped by SIGINT" in said.stderr
    run(*words)
    assert len(ledger.read_text().splitlines()) == before + 6


def test_a_signal_that_comes_too_late_is_no_success(scored: Path) -> None:
    """Whoever asked to stop must not read "done": a pipeline would go on."""
    with started("caption", "--force", "--run", scored) as command:
        command.wait_until(lambda: (scored / ".lock.json").is_file())
        command.signal("SIGTERM")
        assert command.finish().returncode == 143


def test_signals_that_nohup_ignores_stay_ignored(scored: Path) -> None:
    with started("finetune", "--steps", "5", "--run", scored, ignored=("SIGHUP",)) as command:
        command.wait_until(lambda: (scored / ".lock.json").is_file())
        command.signal("SIGHUP")
        assert command.finish().returncode == 0


@pytest.mark.parametrize("stage", ["generate"])
def test_new_images_that_were_begun_with_force_give_way_to_others(begun: Path, stage: str) -> None:
    run("generate", "--run", begun)
    with started("generate", "--seed", "5", "--force", "--count", "100", "--run", begun) as command:
        command.wait_until(lambda: (begun / ".generated.old").is_dir() and list((begun / "generated").rglob("*.png")))
        command.process.kill()
    run("generate", "--seed", "6", "--force", "--run", begun)
    assert not (begun / ".generated.old").exists()
    assert len(read_manifest(begun / "generated" / "samples.parquet")) == 12


def test_the_lock_names_who_writes_and_a_killed_writer_holds_nothing(copy: Path) -> None:
    with started("finetune", "--force", "--steps", "500", "--run", copy) as command:
        command.wait_until(lambda: (copy / ".lock.json").is_file())
        refused = Command(["caption", "--force", "--json", "--run", str(copy)]).finish()
        assert refused.returncode == 11
        assert f"dcdm finetune (process {command.process.pid} " in refused.stderr
        command.process.kill()
        command.process.join()
    run("caption", "--force", "--run", copy)
