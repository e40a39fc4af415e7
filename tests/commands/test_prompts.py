"""Prompts of the user's own and of a language model, from the file to each image's row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dcdm_cli.captioning.prompt_files import read_prompts
from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.difficulty.calibration import save_calibration
from dcdm_cli.difficulty.competence import competence_of
from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.adherence import per_source
from dcdm_cli.generation.engine import Engine
from dcdm_cli.model.adapter import CALIBRATION_FILE
from dcdm_cli.reports.quality_tables import prompt_table
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.calibrate import fit, run_calibrate
from dcdm_cli.stages.caption import run_caption
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.probe import Probed, usable_calibration
from dcdm_cli.stages.prompts import prompt_input

from ..captioning.test_rewriter import save_llama
from ..generation.fakes import NAMES
from .conftest import Open

BASE = {"finetune__base": "tiny"}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.csv"
    file.write_text("class,prompt,source\n*,a {class},me\n*," + "a {class} far away " * 30 + ",you\n", "utf-8")
    return file


def test_prompts_reach_the_images_and_their_rows(
    session: Open, run: RunFolder, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_generate(session(generate__prompts=str(prompts), generate__count=12, **BASE))
    made = read_manifest(run.generated / "samples.parquet")
    found = set(zip(made.table["prompt"].to_pylist(), made.table["prompt_source"].to_pylist(), strict=True))
    short = {(f"a {name}", "me") for name in NAMES}
    assert {pair for pair in found if pair[1] == "me"} <= short and {source for _, source in found} == {"me", "you"}
    assert "3 of 6 were cut at the text encoder's limit" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run.generated / "train" / "metadata.jsonl").read_text().splitlines()]
    assert {(line["prompt"], line["prompt_source"]) for line in lines} == found
    before = made.table["sample_id"].to_pylist()
    prompts.write_text("class,prompt\n*,one {class}\n", "utf-8")  # the same path with other words is another plan
    run_generate(session(generate__prompts=str(prompts), generate__count=12, force=True, **BASE))
    again = read_manifest(run.generated / "samples.parquet")
    assert set(again.table["prompt"].to_pylist()) == {f"one {name}" for name in NAMES}
    assert again.table["sample_id"].to_pylist() != before


def test_a_calibration_that_knows_no_such_prompts_says_so(
    session: Open, run: RunFolder, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = session(generate__calibrated=True, generate__prompts=str(prompts), **BASE)
    asked = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    measured = Probed(asked, asked, asked, np.zeros(40, int), np.ones(40, bool))
    save_calibration(fit(measured, len(NAMES), opened.config.generate), run.adapter / CALIBRATION_FILE)
    run.run(Stage("calibrate", {}, {}), lambda: Outcome([], ""))
    assert usable_calibration(opened) is not None and usable_calibration(opened) is not None
    said = capsys.readouterr().err
    assert said.count("the calibration knows none of these prompts") == 1
    assert f"dcdm finetune --run {run.path} --set generate.prompts={prompts}" in said
    assert usable_calibration(session(generate__calibrated=True, **BASE)) is not None
    run.run(Stage("calibrate", {}, prompt_input(opened)), lambda: Outcome([], ""), force=True)
    usable_calibration(session(generate__calibrated=True, generate__prompts=str(prompts), **BASE))
    assert "knows none" not in capsys.readouterr().err


def test_calibration_says_what_prompts_of_each_source_cost(
    session: Open, run: RunFolder, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probed(session: Session, engine: Engine, targets: list[float], *rest: Any, **more: Any) -> Probed:
        asked = np.repeat(np.array(targets, np.float32), 4)
        sources = ("me", "you") * (len(asked) // 2)
        agrees = np.array([source == "me" for source in sources])
        return Probed(asked, asked, asked, np.zeros(len(asked), int), agrees, None, sources)

    run.scorer.mkdir()
    (run.scorer / "scorer.json").write_text("{}")
    standing = competence_of(400, 0.67, 0.34, 0.5)
    run.run(Stage("score", {}, {}), lambda: Outcome([], "", {"competence": standing}))
    monkeypatch.setattr("dcdm_cli.stages.probe.probe", probed)
    record = run_calibrate(session(generate__prompts=str(prompts), **BASE))
    assert record is not None and [row["source"] for row in record.results["prompt_sources"]] == ["you", "me"]
    said = capsys.readouterr().err
    assert "Prompts of you keep their label in 0.0 % of images, those of me in 100.0 %." in said
    assert "The scorer names 67.0 % of 400 images right that it did not learn from; guessing gets 34.0 %" in said


def test_images_without_such_prompts_have_no_source(session: Open, run: RunFolder) -> None:
    run_generate(session(generate__count=4))
    assert pq.read_table(run.generated / "samples.parquet")["prompt_source"].null_count == 4


def test_a_share_needs_prompts(session: Open) -> None:
    with pytest.raises(UsageError, match=r"--prompt-share 0\.5 is a share of --prompts"):
        run_generate(session(generate__prompt_share=0.5))


def test_a_language_model_writes_prompts_and_leaves_the_captions(
    session: Open, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run(Stage("score", {}, {}), lambda: Outcome([run.samples], "x"))
    asked = {"caption__method": "llm", "caption__llm": str(save_llama(tmp_path / "llama")), "caption__llm_prompts": 4}
    before = run_caption(session(**BASE))
    record = run_caption(session(**asked, caption__llm_tokens=4, **BASE))
    results = record.results
    assert run.record("caption") == before, "captions are what they were: nothing later is stale"
    dropped = sum(results[name] for name in ("empty", "duplicate", "too_long"))
    assert results["asked"] == 12 and results["prompts"] == 12 - dropped
    found = read_prompts(run.prompts, NAMES) if results["prompts"] else [[], [], []]
    assert sum(map(len, found)) == results["prompts"]
    assert all(p.source == "llm" and name in p.prompt for name, of in zip(NAMES, found, strict=True) for p in of)
    assert "kept; dropped" in capsys.readouterr().err
    again = run_caption(session(**asked, caption__llm_tokens=4, **BASE))
    assert again == record, "nothing changed, nothing is written again"


def test_what_prompts_cost_is_seen_per_source() -> None:
    target, realised = np.linspace(0.1, 0.8, 8), np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.9, 0.9, np.nan])
    agrees = np.array([True] * 4 + [False, False, True, True])
    rows = per_source(target, realised, agrees, ["captions"] * 4 + ["llm"] * 4)
    assert [(row["source"], row["n"], row["agreement"]) for row in rows] == [("llm", 3, 0.3333), ("captions", 4, 1.0)]
    assert rows[0]["error"] == pytest.approx(0.3, abs=1e-3)
    assert "Prompts of llm keep their label in 33.3 %" in prompt_table(rows).sentence
    assert per_source(target, realised, agrees, [None] * 8) == []
