"""A stage's flags are its settings: names, help and types come from run/settings.py; what is typed becomes values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo

from dcdm_cli.api import completion
from dcdm_cli.errors import UsageError
from dcdm_cli.gate import parse_toml
from dcdm_cli.run.resolution import field_of, listed, plain_type
from dcdm_cli.run.settings import Config


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r} has no '='", "write --set score.folds=3")
        parsed[key.strip()] = _toml_value(text.strip())
    return parsed


def _toml_value(text: str) -> Any:
    """A TOML value; text that is none is taken as a string."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def section_flags(section: str) -> list[tuple[str, str]]:
    """(parameter name, dotted key) of the section's settings; tables are left to --set and TOML."""
    model = Config.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel)
    return [(n, f"{section}.{n}") for n, f in model.model_fields.items() if get_origin(f.annotation) is not dict]


def flag_parameter(param: str, key: str) -> inspect.Parameter:
    info = field_of(key)
    kind, flag = plain_type(info.annotation), "--" + param.replace("_", "-")
    help = info.description or key.replace("_", " ").replace(".", ": ")  # the default: as the resolved settings have it
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{param.replace('_', '-')}", help=help)
        return parameter(param, Annotated[bool | None, option], None)
    words = completion.choices(get_args(kind)) if get_origin(kind) is Literal else None
    option = typer.Option(flag, help=help, metavar=metavar(kind), autocompletion=words)
    return parameter(param, Annotated[str | None, option], None)


def metavar(kind: Any) -> str:
    """The word for what is typed after an option of this type."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "A,B,…"
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")


def worded(param: inspect.Parameter) -> inspect.Parameter:
    """An option that is no setting, with the word that settings have for what is typed; an argument with its name.
    Typer's own words differ by its version."""
    kind, info = get_args(param.annotation)
    if info.metavar is None and plain_type(kind) is not bool:
        info = copy(info)
        info.metavar = param.name.upper() if isinstance(info, ArgumentInfo) else metavar(plain_type(kind))
    return param.replace(annotation=Annotated[kind, info])


def parse_flag(key: str, value: Any) -> Any:
    """Flags arrive as text; settings.py checks the type and knows `none`."""
    return value if value is None or isinstance(value, bool) else listed(key, value)


def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
