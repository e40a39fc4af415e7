"""What the page of an evaluation has besides numbers: when and how it was made, how fine-tuning chose its strength."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import pytest
from rich.console import Console, RenderableType

from dcdm_cli import __version__
from dcdm_cli.difficulty.competence import competence_of
from dcdm_cli.reports.quality_tables import competence_table, demand_table
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.known import scorer_known, scorer_words
from dcdm_cli.stages.report import (
    generated_lines,
    how_made,
    prompt_lines,
    sample_sheets,
    strength_choice,
    strength_lines,
)

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
    assert strength_choice(run) is None and strength_lines(run, {}) == []
    run.run(Stage("finetune", {}, {}), lambda: Outcome([run.adapter], "x", {"strength": STRENGTH}), force=True)
    found = strength_choice(run)
    assert found is not None and found["chosen"] == 3
    assert len(strength_lines(run, {"strength": found})) == 2  # the table, and how to read it
    [table] = run.tables.glob("*.csv")
    assert "80 *" in table.read_text("utf-8")


def test_the_scorer_is_never_quoted_without_what_it_knows(run: RunFolder) -> None:
    made = {"images": 40, "failed": 0, "measured_mean": 0.5, "target_mean": 0.4, "label_agreement": 0.67}
    assert "real images" not in text_of(generated_lines(run, made)) and scorer_words(run) == ""
    standing = competence_of(400, 0.71, 0.34, 0.5)
    run.run(Stage("score", {}, {}), lambda: Outcome([], "x", {"competence": standing}))
    assert "it sees the label in 67 % of them, and in 71 % of 400 real images" in text_of(generated_lines(run, made))
    assert "The scorer names 71.0 % of 400 images right" in text_of(strength_lines(run, {"strength": STRENGTH}))
    demand = {"images": 4, "demand": [], "newest_difficulty": 0.3, "competence": scorer_known(run)}
    said = demand_table(demand).sentence
    assert said.startswith("Real images are 0.30 hard in the mean") and "The scorer names 71.0 %" in said


def test_a_classifier_of_ones_own_is_not_said_to_be_new_to_the_images(run: RunFolder) -> None:
    standing = competence_of(72, 0.819, 0.34, 0.5)
    said = Stage("score", {"score": {"classifier": "mine.onnx"}}, {})
    run.run(said, lambda: Outcome([], "x", {"competence": standing}))
    assert scorer_words(run).startswith(
        "The scorer names 81.9 % of 72 images right (whether it learned from them is not known: images that it has "
        "seen score too easy); guessing gets 34.0 %"
    )
    made = {"images": 40, "failed": 0, "measured_mean": 0.5, "target_mean": 0.4, "label_agreement": 0.67}
    assert "in 82 % of 72 real images that it may have learned from (" in text_of(generated_lines(run, made))
    table = competence_table({"competence": scorer_known(run)})
    assert "did not learn" not in table.title and table.sentence.endswith("learned from its images is not known.")


def text_of(lines: Sequence[RenderableType]) -> str:
    console = Console(width=1000, file=io.StringIO())
    with console.capture() as said:
        for line in lines:
            console.print(line)
    return " ".join(said.get().split())


def test_the_page_shows_what_fine_tuning_drew_on_its_way(run: RunFolder) -> None:
    assert sample_sheets(run) == []
    sheets = run.figures / "samples" / "adapter"
    sheets.mkdir(parents=True)
    for step in (100, 200, 300, 400, 1000):
        (sheets / f"step-{step:08d}.png").write_bytes(b"x")
    titles = [figure.title for figure in sample_sheets(run)]
    assert titles == [f"After {step} steps" for step in (100, 300, 400, 1000)]


def test_prompts_of_one_source_make_no_table(run: RunFolder) -> None:
    assert prompt_lines(run.tables, {"prompt_sources": []}) == [] and not run.tables.exists()


def test_each_set_keeps_its_own_table_of_prompts(run: RunFolder) -> None:
    source = {"n": 4, "target": 0.5, "realised": 0.4, "spearman": 0.5, "agreement": 1.0}
    numbers = {"images": 4, "target_mean": 0.5, "measured_mean": None, "label_agreement": None, "label_checked": None}
    for name, count in (("", 4), ("hard", 5), ("easy", 6)):
        sources = [source | {"source": "a", "n": count}, source | {"source": "b"}]
        generated_lines(run.with_images(name), numbers | {"prompt_sources": sources})
    found = {file.parent.name: file.read_text("utf-8").splitlines()[1] for file in run.tables.rglob("*.csv")}
    assert {folder: row.split(",")[1] for folder, row in found.items()} == {
        "generated": "4", "generated-hard": "5", "generated-easy": "6"
    }  # fmt: skip
