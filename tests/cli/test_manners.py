"""What shells and pipelines rely on: streams, exit codes, precedence."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from .test_help import DCDM, dcdm


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 9 * i, 99)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def last_error(stderr: str) -> dict:
    return json.loads(stderr.splitlines()[-1])


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
    made = dcdm(*words, "--json", cwd=photos.parent)
    assert made.returncode == code, made.stderr
    assert made.stdout == ""
    error = last_error(made.stderr)
    assert (error["type"], error["code"], error["kind"]) == ("error", code, kind)
    assert says in error["message"] and error["hint"]
    assert "Traceback" not in made.stderr


def test_an_unknown_flag_is_a_usage_error() -> None:
    made = dcdm("score", "--fold", "3")
    assert made.returncode == 2 and "--folds" in made.stderr and made.stdout == ""


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    shell = f"'{DCDM}' config show | head -1; echo ${{PIPESTATUS[0]}}"
    made = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert "Traceback" not in made.stderr
    assert made.stdout.splitlines()[-1] in ("0", "141")


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_poor_terminals_are_fine(env: dict[str, str]) -> None:
    made = dcdm("config", "show", "--origin", env={**os.environ, **env})
    assert made.returncode == 0 and "\x1b" not in made.stdout


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    made = dcdm("score", "\x1b[31mred\x07", cwd=tmp_path)
    assert made.returncode == 10
    assert "\x1b" not in made.stderr and "\\x1b[31mred" in made.stderr
