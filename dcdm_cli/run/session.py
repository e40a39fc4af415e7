"""Session: run folder, settings and console that every stage works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdm_cli.console import Console
from dcdm_cli.run.settings import Config, Layer, Resolved, flat_items
from dcdm_cli.run.store import RunFolder

DEFAULT_RUN = "dcdm-run"


PIPELINE = ("score", "caption", "finetune", "generate", "evaluate")


@dataclass(frozen=True)
class Context:
    """What every command works with, made from the shared options."""

    run: RunFolder
    resolved: Resolved
    console: Console
    force: bool
    dry_run: bool
    given: Mapping[str, Any]  # settings given as flags, dotted
    config_file: Path | None = None

    @property
    def config(self) -> Config:
        return self.resolved.config

    def starter_settings(self) -> dict[str, Any]:
        """What the first command of a run was told, as plain values for dcdm.toml."""
        values = flat_items(self.config)
        return {key: values[key] for key in ("preset", *self.given) if values.get(key) is not None or key in self.given}


def recorded_layers(run: RunFolder, command: str) -> list[Layer]:
    """The settings that the stages before `command` were done with, from their records: what is made from their
    outputs must not see other ones, because a flag was given only once."""
    before = PIPELINE[: PIPELINE.index(command)] if command in PIPELINE else ()
    records = ((stage, run.record(stage)) for stage in before)
    return [
        Layer(f"record of {stage}", _recorded_sections(stage, record.config)) for stage, record in records if record
    ]


def _recorded_sections(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("data", "score")} if stage == "score" else {stage: config}
