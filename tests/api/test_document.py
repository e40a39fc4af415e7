"""Every snippet of docs/python.md runs, one after the other as a reader would, with settings for seconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dcdm_cli
from dcdm_cli import Run

from .conftest import Demo, run_in_copy

ROOT = Path(dcdm_cli.__file__).parent.parent
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
TEXT = (ROOT / "docs" / "python.md").read_text("utf-8")
SNIPPETS = PYTHON.findall(TEXT)


def test_the_snippets_run(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_in_copy(demo, tmp_path / "birds", SNIPPETS, "docs/python.md snippet", monkeypatch)
    said = capsys.readouterr().out
    assert "(4, 32, 32, 3)" in said and "did you mean count?" in said
    assert demo.run.record("finetune") == Run("birds").record("finetune")
    assert getattr(names["image"], "size") == (32, 32)  # noqa: B009


def test_the_readmes_snippet_runs(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the demo's images and preset instead of a reader's photos and a GPU's."""
    (snippet,) = PYTHON.findall((ROOT / "README.md").read_text("utf-8"))
    for ours, theirs in (('"sd15"', '"digits"'), ('"photos/"', '"digits"')):
        assert ours in snippet
        snippet = snippet.replace(ours, theirs)
    names = run_in_copy(demo, tmp_path / "birds", [snippet], "README.md", monkeypatch)
    assert getattr(names["batch"], "images").shape[1:] == (32, 32, 3)  # noqa: B009


def test_the_document_names_every_verb() -> None:
    verbs = {name for name, value in vars(dcdm_cli.Run).items() if callable(value) and not name.startswith("_")}
    missing = [verb for verb in verbs - {"of", "record", "settings"} if f"`{verb}(" not in TEXT]
    assert missing == []
