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
        records = [p.get_help_record(ctx) for p in self.get_params(ctx) if p.param_type_name == "argument"]
        # without the type that typer writes behind an argument's name
        _write(formatter, "Arguments", [(r[0].partition(" <")[0], r[1]) for r in records if r])
        for title, options in self.panels(ctx).items():
            shown = [(option, option.get_help_record(ctx)) for option in options]
            _write(formatter, title, [(r[0], r[1] + self._default(str(option.name), settings)) for option, r in shown])

    def panels(self, ctx: Any) -> dict[str, list[Any]]:
        """Panel -> its options that are not hidden, in the order in which they are shown."""
        panels: dict[str, list[Any]] = {title: [] for title in PANELS}
        for param in self.get_params(ctx):
            if param.param_type_name != "argument" and param.get_help_record(ctx):  # of a hidden one: None
                panels[panel_of(str(param.name), self.keys.get(str(param.name), ""))].append(param)
        return {title: sorted(params, key=lambda p: rank_of(str(p.name))) for title, params in panels.items()}

    def _default(self, name: str, settings: Any) -> str:
        key = self.keys.get(name)
        if key is None or settings is None:
            return ""
        value: Any = settings.config
        for part in key.split("."):
            value = getattr(value, part)
        origin = settings.origins.get(key, DEFAULT)
        text = as_words(value)
        text = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        # of a file its name: the column is narrow
        return f"  [{Path(origin).name if os.sep in origin else origin}: {text}]"

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


def as_words(value: Any) -> str:
    """A setting's value as help shows it."""
    if value is None or value in ("", (), [], {}):
        return "none"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _write(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=26)
