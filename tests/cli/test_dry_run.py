"""`--dry-run` refuses what the command itself would refuse before its work, and makes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.errors import ExitCode

from .conftest import FinishedJob, last_error
from .runner import run


def files_of(folder: Path) -> set[tuple[str, int]]:
    return {(str(file.relative_to(folder)), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["generate", "--difficulty", "nonsense"], ExitCode.USAGE, "not a target distribution"),
        (["generate", "--difficulty", "0.9"], ExitCode.USAGE, "above the cap"),
        (["generate", "--difficulty", "best"], ExitCode.NOT_FOUND, "not measured here"),
        (["generate", "--prompts", "missing.csv"], ExitCode.NOT_FOUND, "missing.csv"),
        (["generate", "--prompt-share", "0.5"], ExitCode.USAGE, "share of --prompts"),
        (["generate", "--counts", "missing.csv"], ExitCode.NOT_FOUND, "missing.csv"),
        (["generate", "--per-class", "2", "--balance"], ExitCode.USAGE, "exclude each other"),
        (["generate", "missing.parquet"], ExitCode.NOT_FOUND, "missing.parquet"),
        (["score", "nowhere"], ExitCode.NOT_FOUND, "nowhere"),
    ],
)
def test_what_the_command_refuses_a_dry_run_refuses_alike(copy: Path, words: list[str], code: int, said: str) -> None:
    words, before = [*words, "--json", "--run", str(copy)], files_of(copy.parent)
    dry = last_error(run(*words, "--dry-run", cwd=copy, code=code))
    assert said in dry["message"] and files_of(copy.parent) == before
    assert last_error(run(*words, cwd=copy, code=code)) == dry


@pytest.mark.parametrize("words", [["--difficulty", "nonsense"], ["--prompts", "missing.csv"]])
def test_values_and_files_are_looked_at_without_a_run_too(words: list[str], tmp_path: Path) -> None:
    code = ExitCode.NOT_FOUND if "--prompts" in words else ExitCode.USAGE
    assert words[1] in run("generate", *words, "--dry-run", cwd=tmp_path, code=code).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_what_would_run_shows_its_settings(job: FinishedJob, tmp_path: Path) -> None:
    before = files_of(job.run)
    assert "0.3" in run("generate", "--difficulty", "0.3", "--name", "x", "--dry-run", "--run", job.run).stdout
    assert run("score", "--dry-run", "--run", job.run).stdout
    assert files_of(job.run) == before
