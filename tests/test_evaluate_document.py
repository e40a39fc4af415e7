"""docs/evaluate.md: its examples are experiments, and it names every key and every experiment there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dcdm_cli
from dcdm_cli.evaluation.experiments import (
    BUILT_IN_ADAPTERS,
    AdapterSpec,
    ArmSpec,
    ClassifierSpec,
    Experiment,
    built_in_experiments,
    parse_experiment,
)
from dcdm_cli.run.settings import ClassifierConfig, GenerateConfig, changed

ROOT = Path(dcdm_cli.__file__).parent.parent
TEXT = (ROOT / "docs" / "evaluate.md").read_text("utf-8")


def test_the_examples_are_experiments_whose_settings_exist() -> None:
    settings, sets = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert [arm.set for arm in parse_experiment(sets, "docs/evaluate.md", "sets").arms] == [None, "generated", "hard"]
    experiment = parse_experiment(settings, "docs/evaluate.md", "steer")
    assert [arm.name for arm in experiment.arms] == [experiment.baseline, *experiment.controls, experiment.focus]
    for spec in experiment.classifiers:
        changed(ClassifierConfig(), spec.settings, spec.name)
    changed(GenerateConfig(), experiment.adapter("strong").generate, "strong")


def test_every_key_experiment_and_adapter_is_named() -> None:
    words = set(re.findall(r"`([^`\n]+)`", TEXT))
    for model in (Experiment, ArmSpec, AdapterSpec, ClassifierSpec):
        assert set(model.model_fields) <= words, set(model.model_fields) - words
    assert set(built_in_experiments()) <= words and set(BUILT_IN_ADAPTERS) <= words


def test_every_flag_it_shows_is_one() -> None:
    known = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    for command in ("evaluate", "generate", "score"):
        words = [sys.executable, "-m", "dcdm_cli", command, "--help"]
        env = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
        known += subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    today = re.sub(r"<sub>.*</sub>", "", TEXT)  # below a result stands the command that made it then
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", today))
    assert len(shown) > 10 and not {flag for flag in shown if flag not in known}
