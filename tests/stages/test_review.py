"""What `dcdm review` says is to be typed next, and before."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dcdm_cli.errors import NotFoundError
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.review import review_lines, run_review

from ..commands.conftest import Open, adapter, run, session

__all__ = ["adapter", "run", "session"]


@pytest.mark.parametrize("own", ["", "mine.onnx"])
def test_the_command_that_takes_the_table_back_can_be_pasted(session: Open, run: RunFolder, own: str) -> None:
    settings = {"source": "my photos", "score": {"classifier": own}}
    run.run(Stage("score", settings, {}), lambda: Outcome([run.samples], "x"))
    found = run_review(session(), 60)
    table = str(run.review / "review.csv")
    words = ["dcdm", "score", "my photos", "--drop", table, "--relabel", table, "--run", str(run.path)]
    assert shlex.split(found["command"]) == words
    console = Console(width=60, file=io.StringIO())
    with console.capture() as said:
        for line in review_lines(found):
            console.print(line, soft_wrap=True)
    assert said.get().splitlines()[-1] == f"  {found['command']}"
    page = Path(found["page"]).read_text("utf-8")
    assert "--relabel" in page and ("was not trained on the image" in page) == (not own)
    assert found["hardest"] == found["easiest"] == 20, "no image is both"


def test_a_run_without_scores_is_told_what_to_score(session: Open, tmp_path: Path) -> None:
    opened = replace(session(), run=RunFolder(tmp_path / "nowhere"))
    with pytest.raises(NotFoundError) as refused:
        run_review(opened, 60)
    assert refused.value.hint == f"run it first: dcdm score FOLDER --run {tmp_path / 'nowhere'}"
    assert not (tmp_path / "nowhere").exists()
