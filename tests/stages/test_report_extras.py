"""What the page of an evaluation has besides numbers: when and how it was made, how fine-tuning chose its strength."""

from __future__ import annotations

import sys

import pytest

from dcdm_cli import __version__
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.report import chosen_strength, how_made, prompt_lines, sample_sheets, strength_lines

from ..commands.conftest import adapter, run
from ..reports.test_strength_report import STRENGTH

__all__ = ["adapter", "run"]


@pytest.mark.parametrize(
    ("program", "known"),
    [("/usr/bin/dcdm", True), ("/x/dcdm_cli/__main__.py", True), ("/x/pytest/__main__.py", False), ("", False)],
)
def test_a_page_says_when_with_what_and_by_which_command(
    program: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "evaluate", "--run", "my birds"])
    made = how_made()
    assert made["made on"].endswith("UTC") and f"dcdm {__version__}" in made["with"] and "torch" in made["with"]
    assert made.get("command") == ("dcdm evaluate --run 'my birds'" if known else None)


def test_a_choice_of_strength_is_found_and_kept_as_a_table(run: RunFolder) -> None:
    assert chosen_strength(run) is None and strength_lines(run, {}) == []
    run.run(Stage("finetune", {}, {}), lambda: Outcome([run.adapter], "x", {"strength": STRENGTH}), force=True)
    found = chosen_strength(run)
    assert found is not None and found["chosen"] == 3
    assert len(strength_lines(run, {"strength": found})) == 2  # the table, and how to read it
    [table] = run.tables.glob("*.csv")
    assert "80 *" in table.read_text("utf-8")


def test_the_page_shows_what_fine_tuning_drew_on_its_way(run: RunFolder) -> None:
    assert sample_sheets(run) == []
    sheets = run.figures / "samples" / "adapter"
    sheets.mkdir(parents=True)
    for step in (100, 200, 300, 400, 1000):
        (sheets / f"step-{step:08d}.png").write_bytes(b"x")
    titles = [figure.title for figure in sample_sheets(run)]
    assert titles == [f"After {step} steps" for step in (100, 300, 400, 1000)]


def test_prompts_of_one_source_make_no_table(run: RunFolder) -> None:
    assert prompt_lines(run, {"prompt_sources": []}) == [] and not run.tables.exists()
