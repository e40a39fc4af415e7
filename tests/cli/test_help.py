"""Help is instant, complete, and its examples work."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcdm_cli.cli import COMMANDS

DCDM = str(Path(sys.executable).with_name("dcdm"))
EXAMPLES = [
    example for command in COMMANDS for example in importlib.import_module(f"dcdm_cli.commands.{command}").EXAMPLES
]


def dcdm(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DCDM, *words], capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--show-completion", "bash"]])
def test_answers_at_once(words: list[str]) -> None:
    def seconds() -> float:
        started = time.perf_counter()
        dcdm(*words)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_does_not_import_torch(command: str) -> None:
    code = (
        "import sys; from dcdm_cli.cli import build_app\n"
        "try: build_app(sys.argv[1:])(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    words = ["config", "show", "--help"] if command == "config" else [command, "--help"]
    made = dcdm(*words, env={**os.environ, "COLUMNS": "200"})
    assert made.returncode == 0 and "Example: dcdm" in made.stdout
    assert "--json" in made.stdout and "--dry-run" in made.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_accepted(example: str, tmp_path: Path) -> None:
    words = shlex.split(example.split("|")[0])
    assert words[0] == "dcdm"
    made = dcdm(*words[1:], "--dry-run", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stderr == "" and made.stdout
    assert list(tmp_path.iterdir()) == []
