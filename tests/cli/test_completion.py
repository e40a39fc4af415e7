"""Completion, asked of every shell that is installed, and of the program as each shell's script asks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dcdm_cli.api import completion
from dcdm_cli.run.store import RunFolder

DCDM = Path(sys.executable).with_name("dcdm")
SCRIPTS = {
    "bash": 'eval "$(dcdm --show-completion bash)"; COMP_WORDS=({words} ""); COMP_CWORD={count}; '
    "_dcdm_completion dcdm; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    "zsh": 'compdef() {{ :; }}; _arguments() {{ print -r -- "$@"; }}; eval "$(dcdm --show-completion zsh)"; '
    'words=({words} ""); CURRENT={count}+1; _dcdm_completion',
    "fish": 'dcdm --show-completion fish | source; complete -C "{words} "',
}
CASES = [
    ("dcdm", {"score", "generate", "status", "doctor", "review"}),
    ("dcdm generate --format", {"folder", "parquet", "webdataset"}),
    ("dcdm finetune --preset", {"digits", "sd15"}),
    ("dcdm evaluate experiment", {"controls", "ablation", "mine.toml"}),
    ("dcdm evaluate", {"run", "experiment", "check", "atlas", "plan", "filter"}),
    ("dcdm status --run", {"birds"}),
    ("dcdm evaluate --name", {"hard"}),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    RunFolder(tmp_path / "birds").create()
    (tmp_path / "birds" / "dcdm.toml").write_text("")
    (tmp_path / "birds" / "sets" / "hard").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.toml").write_text("")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    path = f"{DCDM.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **more}


@pytest.mark.parametrize("shell", SCRIPTS)
@pytest.mark.parametrize(("words", "offered"), [CASES[1], CASES[4]], ids=["choices", "runs"])
def test_the_shell_itself(shell: str, words: str, offered: set[str], place: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = SCRIPTS[shell].format(words=words, count=len(words.split()))
    plain = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *plain, "-c", script], cwd=place, env=environment(), capture_output=True, text=True, check=False
    )
    found = {word.strip("\"'():") for word in done.stdout.split()}
    assert offered <= found and "photos" not in found, done.stderr


@pytest.mark.parametrize("shell", SCRIPTS)
@pytest.mark.parametrize(("words", "offered"), CASES, ids=[words for words, _ in CASES])
def test_the_program_as_each_shell_asks_it(shell: str, words: str, offered: set[str], place: Path) -> None:
    line = f"{words} "
    asked = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    if shell == "bash":
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words.split()))}
    env = environment(_DCDM_COMPLETE=f"complete_{shell}", **asked)
    done = subprocess.run([DCDM], cwd=place, env=env, capture_output=True, text=True, check=False)
    found = {part.strip("\"'():") for part in done.stdout.replace('"', " ").split()}
    assert offered <= found, (done.stdout, done.stderr)


def test_run_folders_below_a_folder_are_written_as_they_were_begun(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.parent)
    assert completion.runs(f"{place.name}/b") == [f"{place.name}/birds"]
    assert completion.runs(f"{place}/") == [f"{place}/birds"]
    assert completion.runs("no/such/place") == []
