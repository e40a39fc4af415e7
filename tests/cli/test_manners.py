"""What shells and pipelines rely on: streams, exit codes, precedence."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from .conftest import last_error
from .runner import run
from .test_help import DCDM, dcdm


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 9 * i, 99 + label)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_settings_as_json_are_one_document_on_stdout() -> None:
    made = dcdm("config", "show", "--json", "--preset", "digits", "--set", "score.folds=3")
    assert made.returncode == 0 and made.stderr == ""
    document = json.loads(made.stdout)
    assert (document["score.folds"], document["finetune.base"]) == (3, "tiny")


def test_origins_name_flag_environment_and_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[finetune]\nrank = 3\n")
    made = dcdm(
        "config", "show", "--origin", "--json", "--config", "x.toml", "--set", "finetune.steps=7",
        cwd=tmp_path, env={**os.environ, "DCDM_FINETUNE__LR": "0.5"},
    )  # fmt: skip
    document = json.loads(made.stdout)
    origins = {key: document[f"finetune.{key}"] for key in ("rank", "steps", "lr", "alpha")}
    assert origins == {
        "rank": {"value": 3, "origin": "x.toml"},
        "steps": {"value": 7, "origin": "flag"},
        "lr": {"value": 0.5, "origin": "environment"},
        "alpha": {"value": 16, "origin": "default"},
    }


def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    made = dcdm("finetune", "--steps", "9", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(made.stdout)["finetune.steps"] == 9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "kind", "says"),
    [
        (["score"], 2, "UsageError", "no images to score"),
        (["score", "nowhere"], 10, "NotFoundError", "nowhere"),
        (["score", "photos", "--folds", "1"], 2, "UsageError", "score.folds"),
        (["score", "photos", "--set", "score.fold=3"], 2, "UsageError", "score.fold"),
        (["score", "photos", "--preset", "sd51"], 2, "UsageError", "sd51"),
        (["score", "photos", "--config", "none.toml"], 10, "NotFoundError", "none.toml"),
        (["score", "photos", "--device", "cuda:7"], 22, "CapabilityError", "cuda:7"),
        (["score", "photos", "--run", "photos/cat/0.png/run"], 20, "StorageError", "0.png"),
        (["caption"], 10, "NotFoundError", "score"),
        (["finetune"], 10, "NotFoundError", "score"),
        (["generate"], 10, "NotFoundError", "finetune"),
    ],
)
def test_failures_have_a_code_a_message_and_a_remedy(
    photos: Path, words: list[str], code: int, kind: str, says: str
) -> None:
    made = run(*words, "--json", cwd=photos.parent, code=code)
    assert made.stdout == ""
    error = last_error(made)
    assert (error["type"], error["code"], error["kind"]) == ("error", code, kind)
    assert says in error["message"] and error["hint"]


@pytest.mark.parametrize(
    ("words", "near"),
    [(["score", "--fold", "3"], "--folds"), (["scroe"], "score"), (["config", "show", "score", "x"], "x")],
)
def test_a_slip_on_the_command_line_is_a_usage_error_in_json_too(words: list[str], near: str) -> None:
    made = run(*words, "--json", code=2)
    error = last_error(made)
    assert made.stdout == "" and near in error["message"]
    assert (error["kind"], error["code"]) == ("UsageError", 2) and error["hint"].endswith("--help")


@pytest.mark.parametrize(
    "words", [["config", "show"], ["config", "show", "--json"], ["--help"], ["score", "--help"], ["--version"]]
)
def test_a_reader_that_has_left_is_no_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    made = subprocess.run([DCDM, *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (made.returncode, made.stderr) == (141, "")


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), ("<&-", 0), (">&- 2>&- <&-", 0)])
def test_closed_streams_are_fine(closed: str, code: int, tmp_path: Path) -> None:
    """The number of a closed stream must not become the number of a file that is written later."""
    shell = f"'{DCDM}' config show {closed}; echo $? > code"
    made = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (tmp_path / "code").read_text() == f"{code}\n" and "Traceback" not in made.stderr


@pytest.mark.slow
def test_a_manifest_comes_through_a_pipe_and_another_one_is_another_source(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))

    def score(rows: list[Path]) -> subprocess.CompletedProcess[str]:
        lines = "\n".join(["path,label", *(f"photos/{p.relative_to(photos)},{p.parent.name}" for p in rows)])
        words = ["score", "-", "--run", "run", "--json", "--method", "crossfit", "--image-size", "16", "--steps", "1"]
        return run(*words, stdin=lines, cwd=tmp_path)

    assert json.loads(score(files).stdout)["images"] == 12
    assert "nothing changed, skipped" in score(files).stderr
    assert json.loads(score(files[1:]).stdout)["images"] == 11


def test_optional_settings_can_be_switched_off_everywhere(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[generate]\nclip_range = "none"\n')
    env = {"DCDM_FINETUNE__SNR_GAMMA": "none", "DCDM_EVALUATE__TARGETS": "0.1,0.3"}
    words = ["--preset", "digits", "--config", "x.toml", "--ratio", "none", "--count", "5"]
    shown = json.loads(run("generate", *words, "--dry-run", "--json", cwd=tmp_path, env=env).stdout)
    assert [shown[key] for key in ("generate.clip_range", "finetune.snr_gamma", "generate.ratio")] == [None] * 3
    assert shown["evaluate.targets"] == [0.1, 0.3]


def test_the_demo_obeys_every_layer(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text("[finetune]\nrank = 3\n")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "dcdm.toml").write_text("[evaluate]\nseeds = 5\n[finetune]\nrank = 2\nalpha = 7\n")
    how = {"cwd": tmp_path, "env": {"DCDM_SCORE__FOLDS": "4"}}
    words = ["demo", "--run", "demo", "--config", "file.toml", "--set", "judge.steps=9", "--dry-run", "--json"]
    shown = json.loads(run(*words, **how).stdout)
    keys = (
        "preset",
        "finetune.base",
        "evaluate.seeds",
        "finetune.rank",
        "finetune.alpha",
        "score.folds",
        "judge.steps",
    )
    assert [shown[key] for key in keys] == ["digits", "tiny", 5, 3, 7, 4, 9]
    assert shown["evaluate.arms"] == ["real", "augmented", "dcdm"]
    full = json.loads(run(*words, "--full", **how).stdout)
    assert full["evaluate.seeds"] >= 8 and len(full["evaluate.arms"]) >= 5


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_poor_terminals_are_fine(env: dict[str, str]) -> None:
    made = dcdm("config", "show", "--origin", env={**os.environ, **env})
    assert made.returncode == 0 and "\x1b" not in made.stdout


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    made = dcdm("score", "\x1b[31mred\x07", cwd=tmp_path)
    assert made.returncode == 10
    assert "\x1b" not in made.stderr and "\\x1b[31mred" in made.stderr
