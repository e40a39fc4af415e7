"""How a command's options are shown: in panels, the common ones first, with the defaults that this run gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from typer.core import TyperCommand

from dcdm_cli.commands.panels import PANELS, panel_of, rank_of

DEFAULT, SHOWN = "default", 48  # characters of a default


class PanelCommand(TyperCommand):
    """keys: parameter -> dotted setting. stage: the command's name."""

    keys: ClassVar[Mapping[str, str]] = {}
    stage: ClassVar[str] = ""
    _words: Sequence[str] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._words = tuple(args)  # `--help` is answered before the other words are looked at
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        settings = self._resolved(ctx)
        panels: dict[str, list[tuple[int, tuple[str, str]]]] = {name: [] for name in PANELS}
        arguments = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                arguments.append(record)
            else:
                name = str(param.name)
                row = record[0], record[1] + self._default(name, settings)
                panels[panel_of(name, self.keys.get(name, ""))].append((rank_of(name), row))
        _write(formatter, "Arguments", arguments)
        for title, rows in panels.items():
            _write(formatter, title, [row for _, row in sorted(rows, key=lambda item: item[0])])

    def _default(self, name: str, settings: Any) -> str:
        key = self.keys.get(name)
        if key is None or settings is None:
            return ""
        value: Any = settings.config
        for part in key.split("."):
            value = getattr(value, part)
        origin = settings.origins.get(key, DEFAULT)
        return f"  [{Path(origin).name if os.sep in origin else origin}: {_shown(value)}]"

    def _resolved(self, ctx: Any) -> Any:
        """The settings as the words before and after `--help` leave them; the plain ones where those break a rule."""
        from dcdm_cli.errors import DcdmError
        from dcdm_cli.run.resolution import resolve
        from dcdm_cli.run.session import DEFAULT_RUN, recorded_layers
        from dcdm_cli.run.store import RunFolder

        said = _said(self._words)
        run = RunFolder(Path(said.get("--run") or os.environ.get("DCDM_RUN") or DEFAULT_RUN))
        file = Path(said["--config"]) if "--config" in said else None
        try:
            layers = recorded_layers(run, self.stage)
            return resolve(
                flags={"preset": said.get("--preset")}, config_file=file, run_file=run.config_file, recorded=layers
            )
        except DcdmError:
            return resolve()


def panelled(stage: str, keys: Mapping[str, str]) -> type[TyperCommand]:
    """The class of one command's help."""
    return type("Panelled", (PanelCommand,), {"stage": stage, "keys": dict(keys)})


def _said(words: Sequence[str]) -> dict[str, str]:
    """Of the words, the options that decide about defaults: `--run birds` and `--run=birds`."""
    said = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return said | {first: second for first, second in pairwise(words) if first in ("--run", "--preset", "--config")}


def _shown(value: Any) -> str:
    if value is None or value in ("", (), [], {}):
        return "none"
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _write(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=26)
