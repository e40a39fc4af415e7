"""The whole job through the command line, on the embedded digits with settings that take seconds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcdm_cli.data.manifest import read_manifest

from .test_help import DCDM

SETTINGS = """
preset = "digits"
threads = 2
[score]
steps = 25
folds = 2
repeats = 1
[judge]
steps = 60
[downstream]
steps = 5
[finetune]
steps = 8
checkpoint_every = 4
[calibrate]
enabled = false
[generate]
steps = 2
count = 20
batch_size = 8
[evaluate]
targets = [0.2, 0.5]
per_target = 20
arms = ["real", "plain", "dcdm"]
seeds = 2
"""
STAGES = ("score", "caption", "finetune", "generate", "evaluate")


def dcdm(run: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [DCDM, *words, "--run", str(run)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert made.returncode == code, made.stderr
    assert "Warning" not in made.stderr and "Traceback" not in made.stderr
    return made


def document(made: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(made.stdout)


def new_run(folder: Path, settings: str = SETTINGS) -> Path:
    folder.mkdir(parents=True)
    (folder / "dcdm.toml").write_text(settings)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    run = new_run(tmp_path_factory.mktemp("pipeline") / "run")
    return run, {stage: document(dcdm(run, stage, "--json")) for stage in STAGES}


@pytest.fixture
def copy(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.mark.slow
def test_every_stage_reports_what_it_made(finished: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    run, documents = finished
    assert documents["score"]["classes"] == 10 and documents["score"]["scored"] == 200
    assert documents["caption"]["distinct"] == 10
    assert documents["finetune"]["images"] == 200 - documents["score"]["suspects"]
    assert documents["generate"]["images"] == 20
    metrics = documents["evaluate"]
    assert metrics == json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["schema"] == 1 and metrics["adherence"]["n"] == 40
    assert {arm["name"]: arm["synthetic_images"] for arm in metrics["downstream"]["arms"]} == {
        "real": 0, "plain": 200, "dcdm": 200
    }  # fmt: skip
    assert set(metrics["seconds"]) >= {"score", "caption", "finetune", "generate", "adherence", "downstream"}


@pytest.mark.slow
def test_the_run_folder_is_laid_out_as_documented(finished: tuple[Path, Any]) -> None:
    run = finished[0]
    expected = [
        "dcdm.toml", "samples.parquet", "rejected.jsonl", "scorer/scorer.json", "figures/difficulty.png",
        "figures/hardest.png", "figures/easiest.png", "adapter/pytorch_lora_weights.safetensors",
        "adapter/difficulty_encoder.safetensors", "adapter/config.json", "generated/plan.parquet",
        "generated/samples.parquet", "generated/README.md", "generated/train/metadata.jsonl",
        "evaluation/metrics.json", "evaluation/report.html", *(f"records/{stage}.json" for stage in STAGES),
    ]  # fmt: skip
    assert [name for name in expected if not (run / name).is_file()] == []
    assert not [p for p in run.rglob("*") if p.suffix in (".part", ".pt", ".pkl", ".bin", ".pth")]
    assert (run / "dcdm.toml").read_text() == SETTINGS
    report = (run / "evaluation" / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "") and "<img" in report


@pytest.mark.slow
def test_running_it_again_does_nothing_even_when_moved(copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file() and ".lock" not in p.name}
    for stage in STAGES[1:]:
        assert "nothing changed, skipped" in dcdm(copy, stage).stderr
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file() and ".lock" not in p.name} == before


@pytest.mark.slow
def test_a_new_setting_makes_its_stage_and_what_follows_stale(copy: Path) -> None:
    made = dcdm(copy, "caption", "--template", "the {class}")
    assert "skipped" not in made.stderr
    assert set(read_manifest(copy / "samples.parquet").column("caption")) == {f"the {i}" for i in range(10)}
    refused = dcdm(copy, "generate", "--json")
    assert document(refused)["images"] == 20  # the adapter is what it was; generation is not stale by itself
    assert "skipped" not in dcdm(copy, "finetune").stderr


@pytest.mark.slow
def test_other_images_replace_the_old_only_with_force(copy: Path) -> None:
    old = sorted((copy / "generated" / "train").rglob("*.png"))
    made = dcdm(copy, "generate", "--seed", "5", "--json", code=12)
    assert "another plan" in made.stderr and sorted((copy / "generated" / "train").rglob("*.png")) == old
    dcdm(copy, "generate", "--seed", "5", "--force")
    new = sorted((copy / "generated" / "train").rglob("*.png"))
    assert len(new) == 20 and not {p.name for p in new} & {p.name for p in old}


@pytest.mark.slow
def test_quiet_prints_the_path_and_generated_images_can_be_scored(copy: Path, tmp_path: Path) -> None:
    made = dcdm(copy, "generate", "--quiet")
    assert made.stdout == f"{copy / 'generated'}\n" and made.stderr == ""
    run = new_run(tmp_path / "again", SETTINGS.replace("steps = 25", "steps = 2"))
    scored = document(dcdm(run, "score", str(copy / "generated" / "train"), "--test-fraction", "0.2", "--json"))
    assert scored["images"] == 20 and scored["rejected"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_fine_tuning_that_was_stopped_goes_on(finished: tuple[Path, Any], copy: Path, name: str) -> None:
    shutil.rmtree(copy / "adapter")
    words = [DCDM, "finetune", "--force", "--steps", "400", "--run", str(copy)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list((copy / "checkpoints").rglob("tensors.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == {"SIGTERM": 143, "SIGINT": 130}[name]
    assert f"stopped by {name}; checkpoint at step" in said and "Traceback" not in said
    assert not (copy / "adapter").exists()
    kept = sorted((copy / "checkpoints").rglob("step-*"))
    assert kept
    steps = int(kept[-1].name.removeprefix("step-"))
    assert 4 <= steps < 400


@pytest.mark.slow
def test_generation_that_was_killed_goes_on_to_the_same_images(finished: tuple[Path, Any], copy: Path) -> None:
    shutil.rmtree(copy / "generated")
    words = [DCDM, "generate", "--batch-size", "1", "--run", str(copy)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list((copy / "generated").rglob("*.png"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    made = document(dcdm(copy, "generate", "--json"))
    assert 0 < made["made_now"] < 20 and made["images"] == 20
    through, resumed = (read_manifest(p / "generated" / "samples.parquet") for p in (finished[0], copy))
    assert through.column("sample_id").tolist() == resumed.column("sample_id").tolist()
    assert not list((copy / "generated").rglob("*.part"))


@pytest.mark.slow
def test_a_folder_with_bad_images_is_scored_with_code_3(tmp_path: Path) -> None:
    for name in ("cat", "test tube"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            shade = 200 if name == "cat" else 30
            Image.new("RGB", (16, 16), (shade, 5 * i, 9)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "cat" / "bad.png").write_bytes(b"no image")
    run = new_run(tmp_path / "run", SETTINGS.replace("steps = 25", "steps = 2"))
    made = dcdm(run, "score", str(tmp_path / "photos"), "--max-bad", "0.2", "--json", code=3)
    assert document(made)["rejected"] == 1
    (line,) = (run / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("bad.png")
    refused = dcdm(new_run(tmp_path / "strict", SETTINGS), "score", str(tmp_path / "photos"), "--strict", code=1)
    assert "bad.png" in refused.stderr


@pytest.mark.slow
def test_one_class_or_an_empty_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (16, 16), (9 * i, 9, 9)).save(tmp_path / "photos" / "cat" / f"{i}.png")
    run = new_run(tmp_path / "run")
    assert "class" in dcdm(run, "score", str(tmp_path / "photos"), code=2).stderr
    (tmp_path / "photos" / "dog").mkdir()
    assert "dog" in dcdm(run, "score", str(tmp_path / "photos"), code=2).stderr


@pytest.mark.slow
def test_a_second_process_is_told_who_writes(copy: Path) -> None:
    from dcdm_cli.store import RunFolder

    with RunFolder(copy).lock("dcdm finetune"):
        made = dcdm(copy, "caption", code=11)
    assert "dcdm finetune" in made.stderr


@pytest.mark.slow
def test_evaluation_needs_known_arms(copy: Path) -> None:
    made = dcdm(copy, "evaluate", "--arms", "real,dcmd", code=2)
    assert "unknown arm 'dcmd'" in made.stderr and "did you mean dcdm" in made.stderr
