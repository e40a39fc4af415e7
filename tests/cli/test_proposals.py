"""Every command that a report proposes runs as it is printed, in the run that it is about."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dcdm_cli.console import Console
from dcdm_cli.errors import ExitCode
from dcdm_cli.reports.advice import Advice
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.report import run_advice

from .runner import run

PAIR = {"arm": "dcdm", "against": "real", "difference_mean": 0.02, "difference_ci95": [0.01, 0.03], "seeds": 3}
CELL = {"arms": [{"name": "mean 0.3", "difficulty": "normal:0.3,0.1"}], "ratio": 0.5}
CASES: dict[str, dict[str, Any]] = {  # what differs from a run whose images help
    "helps": {},
    "points to a gain": {"pair": {"verdict": "points to better", "seeds_needed": 12}},
    "harms": {"pair": {"verdict": "worse"}},
    "leaks": {"quality": {"leakage": {"level": "error", "near_test": 3}}},
    "labels are lost": {"quality": {"label_agreement": 0.1}},
    "labels hold nowhere": {"adherence": {"labels_hold_until": {"generated": None, "real": 0.5}}},
    "labels hold at no difficulty above 0": {"adherence": {"labels_hold_until": {"generated": 0.0, "real": 0.5}}},
    "nothing was compared": {"downstream": {}},
    "sweeps were run": {"sweeps": ("mean-sweep", "ratio-sweep")},
}


def metrics_of(case: dict[str, Any]) -> dict[str, Any]:
    pair = {**PAIR, "verdict": "better", **case.get("pair", {})}
    adherence = {"labels_hold_until": {"generated": 0.7, "real": 0.8}, "reachable": [0.2, 0.6]}
    quality = {"images": 12, "label_agreement": 0.95, "leakage": {"level": "ok"}}
    return {
        "adherence": adherence | case.get("adherence", {}),
        "quality": quality | case.get("quality", {}),
        "downstream": case.get("downstream", {"paired": [pair]}),
    }


def record_sweep(folder: Path, name: str) -> None:
    """As if the experiment had been run: its record and its document."""
    cell = {**CELL, "paired": [{**PAIR, "arm": arm, "verdict": "better"} for arm in ("dcdm", "mean 0.3")]}
    finetune = RunFolder(folder).require("finetune")
    record = json.loads((folder / "records" / "finetune.json").read_text("utf-8"))
    record |= {"stage": f"evaluate-{name}", "inputs": {"finetune": finetune.id}, "results": {"cells": [cell]}}
    (folder / "records" / f"evaluate-{name}.json").write_text(json.dumps(record), "utf-8")
    (folder / "evaluation" / f"{name}.json").write_text("{}", "utf-8")


def proposals(folder: Path, case: dict[str, Any]) -> list[Advice]:
    for name in case.get("sweeps", ()):
        record_sweep(folder, name)
    session = Session(RunFolder(folder), resolve(flags={}), Console(quiet=True), False, False, {})
    return [one for one in run_advice(session, metrics_of(case)) if one.command]


@pytest.mark.parametrize("case", CASES)
def test_what_a_report_proposes_can_be_pasted(copy: Path, case: str) -> None:
    """What generates really does; of the rest everything up to its work is gone through."""
    file = copy / "records" / "finetune.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"seconds": 7000.0}), "utf-8")
    found = proposals(copy, CASES[case])
    assert found
    for one in found:
        words = shlex.split(one.command)
        assert words[:1] == ["dcdm"] and words[-2:] == ["--run", str(copy)], one.command
        run(*words[1:], *(() if words[1] == "generate" or "filter" in words else ("--dry-run",)), cwd=copy.parent)
        if "finetune" in words:  # what it is needed for
            refused = run(*(word for word in words[1:] if word != "--force"), "--dry-run", code=ExitCode.MISMATCH)
            assert "replaces what finetune made" in refused.stderr
    sets = [one.command for one in found if "generate" in one.command]
    assert len(RunFolder(copy).set_names()) == len(sets)
