"""Options, defined once. A stage's flags are its settings: names, help and types come from config.py."""

from __future__ import annotations

import functools
import inspect
import math
import tomllib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from dcdm_cli.api.session import GENERAL, open_session
from dcdm_cli.commands import completion
from dcdm_cli.commands.help import panelled
from dcdm_cli.console import Console
from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import split_list, toml_document
from dcdm_cli.run.resolution import flat_items
from dcdm_cli.run.session import DEFAULT_RUN, Context, checked_name, peaks_told
from dcdm_cli.run.settings import Config

SHARED: dict[str, tuple[Any, Any]] = {
    "run": (
        Annotated[Path, typer.Option(help="Run folder.", envvar="DCDM_RUN", autocompletion=completion.runs)],
        Path(DEFAULT_RUN),
    ),
    "preset": (
        Annotated[
            str | None,
            typer.Option(help="Settings to start from: digits, sd15, sd21.", autocompletion=completion.presets),
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
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")], False),
    "as_json": (Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Only the result's path on stdout.")], False),
}

OUTPUT = ("dry_run", "as_json", "quiet")


def stage_command(
    app: typer.Typer,
    name: str,
    *,
    help: str,
    sections: Sequence[str] = (),
    keys: Sequence[str] = (),
    examples: Sequence[str] = (),
    prepare: Callable[..., Context] | None = None,
    run_of: Callable[..., Path | None] | None = None,
    shared: Sequence[str] = tuple(SHARED),
) -> Callable[[Callable[..., None]], None]:
    """Registers `function(context, **own)` with its own parameters, the flags of `sections`, and the shared options.

    keys: single settings of other sections that are flags here too.
    prepare: (context, **own) -> the context the command works with, before --dry-run shows it.
    run_of: (**own) -> the run folder that the command's own parameters name, for who gives no --run.
    shared: the shared options that make sense for it; those for output every command has.
    """
    offered = {name: SHARED[name] for name in SHARED if name in (*shared, *OUTPUT)}

    def decorate(function: Callable[..., None]) -> None:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        flags = {param: key for section in sections for param, key in _section_flags(section)}
        flags |= {key.rpartition(".")[2]: key for key in keys}
        taken = {p.name for p in own} | set(SHARED)
        flags = {param: key for param, key in flags.items() if param not in taken}

        @functools.wraps(function)
        def command(ctx: typer.Context, **values: Any) -> None:
            given = {key: _parse_flag(key, values.pop(param)) for param, key in flags.items()}
            if run_of is not None and _is_default(ctx, "run"):
                values["run"] = run_of(**{p.name: values[p.name] for p in own}) or values["run"]
            shown = {key: values.pop(key, SHARED[key][1]) for key in SHARED}
            context = _open_context(ctx, name, {**shown, "images_name": values.get("name")}, given)
            if prepare is not None:
                context = prepare(context, **values)
            if context.dry_run:
                print_settings(context)
            else:
                with peaks_told(context):
                    function(context, **values)

        parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        parameters += [_flag_parameter(param, key) for param, key in flags.items()]
        parameters += [_parameter(param, annotation, default) for param, (annotation, default) in offered.items()]
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        lines = [help, "", "\b", *(f"Example: {example}" for example in examples)]  # \b: not filled to paragraphs
        app.command(name, help="\n".join(lines), cls=panelled(name, flags))(command)

    return decorate


def finite(flag: str, value: float | None) -> float | None:
    """A flag that is no setting. Raises UsageError for what settings refuse too: infinity and NaN."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{flag} {value}: give a finite number", f"for example {flag} 2.5")
    return value


def _is_default(ctx: typer.Context, name: str) -> bool:
    """Neither a flag nor the environment said it. By name: some versions of typer have a click of their own."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def print_settings(context: Context, *, origin: bool = False) -> None:
    """The resolved settings, as a document or as TOML that --config reads back."""
    values = flat_items(context.config)
    origins = context.resolved.origins
    if context.console.as_json or context.console.quiet:
        document = {k: {"value": v, "origin": origins[k]} if origin else v for k, v in values.items()}
        context.console.result(document, context.run.path)
    else:
        context.console.text(toml_document(values, origins if origin else None))


def _open_context(ctx: typer.Context, command: str, shared: dict[str, Any], given: dict[str, Any]) -> Context:
    console = ctx.obj if isinstance(ctx.obj, Console) else Console()
    console.as_json, console.quiet = shared["as_json"], shared["quiet"]
    console.reserve_stdout()
    flags = {key: value for key, value in given.items() if value is not None}
    flags |= {name: shared[name] for name in GENERAL if shared[name] is not None}
    flags |= _parse_settings(shared["settings"] or [])
    options = {"config_file": shared["config"], "force": shared["force"], "dry_run": shared["dry_run"]}
    return open_session(shared["run"], command, flags, console, name=checked_name(shared["images_name"]), **options)


def _parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
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
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _section_flags(section: str) -> list[tuple[str, str]]:
    """(parameter name, dotted key) of the section's settings; tables are left to --set and TOML."""
    model = Config.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel)
    return [(n, f"{section}.{n}") for n, f in model.model_fields.items() if get_origin(f.annotation) is not dict]


def _field(key: str) -> Any:
    section, name = key.split(".")
    model: Any = Config.model_fields[section].annotation
    return model.model_fields[name]


def _plain_type(annotation: Any) -> Any:
    """The type without `| None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def _flag_parameter(param: str, key: str) -> inspect.Parameter:
    info = _field(key)
    kind, flag = _plain_type(info.annotation), "--" + param.replace("_", "-")
    help = info.description or key.replace("_", " ").replace(".", ": ")  # the default: as the resolved settings have it
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{param.replace('_', '-')}", help=help)
        return _parameter(param, Annotated[bool | None, option], None)
    words = completion.choices(get_args(kind)) if get_origin(kind) is Literal else None
    option = typer.Option(flag, help=help, metavar=_metavar(kind), autocompletion=words)
    return _parameter(param, Annotated[str | None, option], None)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "A,B,…"
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")


def _parse_flag(key: str, value: Any) -> Any:
    """Flags arrive as text; config.py checks the type and knows `none`. Lists are written with commas."""
    if value is None or isinstance(value, bool):
        return value
    return split_list(value) if get_origin(_plain_type(_field(key).annotation)) is tuple else value


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
