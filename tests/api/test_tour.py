"""The notebook runs from top to bottom, with settings for seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dcdm_cli

from .conftest import Demo, run_in_copy

FILE = Path(dcdm_cli.__file__).parent.parent / "docs" / "tour.ipynb"


def cells(kind: str) -> list[str]:
    document = json.loads(FILE.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_what_it_put_out() -> None:
    document = json.loads(FILE.read_text("utf-8"))
    assert document["nbformat"] == 4 and len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in document["cells"])


def test_every_cell_runs(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_copy(demo, tmp_path / "tour-run", cells("code"), "docs/tour.ipynb cell", monkeypatch)
    said = capsys.readouterr().out
    assert "mine " in said and "template captions" in said, "prompts of both sources were measured"
    assert (tmp_path / "tour-run" / "generated" / "train" / "metadata.jsonl").is_file()
