"""Options that all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdm_cli.api import completion
from dcdm_cli.run.presets import PRESET_NAMES
from dcdm_cli.run.session import DEFAULT_RUN

SHARED: dict[str, tuple[Any, Any]] = {
    "run": (
        Annotated[Path, typer.Option(help="Run folder.", envvar="DCDM_RUN", autocompletion=completion.runs)],
        Path(DEFAULT_RUN),
    ),
    "preset": (
        Annotated[
            str | None,
            typer.Option(help=f"Settings to start from: {PRESET_NAMES}.", autocompletion=completion.presets),
        ],
        None,
    ),
    "config": (Annotated[Path | None, typer.Option(help="TOML file with settings.")], None),
    "settings": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="KEY=VALUE", help="Any setting: score.folds=3", autocompletion=completion.setting_keys
            ),
        ],
        None,
    ),
    "device": (
        Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", autocompletion=completion.devices)],
        None,
    ),
    "threads": (Annotated[int | None, typer.Option(help="CPU threads.")], None),
    "seed": (Annotated[int | None, typer.Option(help="Run seed.")], None),
    "force": (Annotated[bool, typer.Option("--force", help="Run again even if nothing changed.")], False),
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="Check and print the settings, then stop.")], False),
    "as_json": (Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Only the result's path on stdout.")], False),
}

OUTPUT = ("dry_run", "as_json", "quiet")
