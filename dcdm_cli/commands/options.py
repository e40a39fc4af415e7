"""A command as typer wants it: its own parameters, its stage's settings as flags, and what all commands share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from dcdm_cli.api.session import GENERAL, open_session
from dcdm_cli.commands.flags import flag_parameter, parameter, parse_flag, parse_settings, section_flags, worded
from dcdm_cli.commands.help import panelled
from dcdm_cli.commands.shared import OUTPUT, SHARED
from dcdm_cli.console import Console
from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import DEFAULT, toml_document
from dcdm_cli.run.resolution import flat_items
from dcdm_cli.run.session import Session, checked_name, peaks_told
from dcdm_cli.stages.rehearsal import rehearse


def stage_command(
    app: typer.Typer,
    name: str,
    *,
    help: str,
    sections: Sequence[str] = (),
    keys: Sequence[str] = (),
    examples: Sequence[str] = (),
    prepare: Callable[..., Session] | None = None,
    run_of: Callable[..., Path | None] | None = None,
    shared: Sequence[str] = tuple(SHARED),
) -> Callable[[Callable[..., None]], None]:
    """Registers `function(session, **own)` with its own parameters, the flags of `sections`, and the shared options.

    keys: single settings of other sections that are flags here too.
    prepare: (session, **own) -> the session the command works with, before --dry-run shows it.
    run_of: (**own) -> the run folder that the command's own parameters name, for who gives no --run.
    shared: the shared options that make sense for it; those for output every command has.
    """
    offered = {name: SHARED[name] for name in SHARED if name in (*shared, *OUTPUT)}

    def decorate(function: Callable[..., None]) -> None:
        # annotations are texts in these modules
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        flags = {param: key for section in sections for param, key in section_flags(section)}
        flags |= {key.rpartition(".")[2]: key for key in keys}
        taken = {p.name for p in own} | set(SHARED)  # --seed, say, is the run's, and a stage's own is --set's
        flags = {param: key for param, key in flags.items() if param not in taken}

        @functools.wraps(function)
        def command(ctx: typer.Context, **values: Any) -> None:
            given = {key: parse_flag(key, values.pop(param)) for param, key in flags.items()}
            if run_of is not None and _is_default(ctx, "run"):
                values["run"] = run_of(**{p.name: values[p.name] for p in own}) or values["run"]
            shown = {key: values.pop(key, SHARED[key][1]) for key in SHARED}
            session = _open_session(ctx, name, {**shown, "images_name": values.get("name")}, given)
            if prepare is not None:
                session = prepare(session, **values)
            if session.dry_run:
                rehearse(name, session, values)
                print_settings(session)
            else:
                with peaks_told(session):
                    function(session, **values)

        parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [worded(p.replace(kind=inspect.Parameter.KEYWORD_ONLY)) for p in own]
        parameters += [flag_parameter(param, key) for param, key in flags.items()]
        parameters += [
            worded(parameter(param, annotation, default)) for param, (annotation, default) in offered.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        command.__annotations__ = {p.name: p.annotation for p in parameters}  # typer reads both
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


def print_settings(session: Session, *, origin: bool = False) -> None:
    """The resolved settings, as a document or as TOML that --config reads back, with a comment where one is no default.
    origin: with one everywhere, and in the document."""
    values, origins = flat_items(session.config), session.resolved.origins
    if session.console.as_json or session.console.quiet:
        document = {k: {"value": v, "origin": origins[k]} if origin else v for k, v in values.items()}
        session.console.result(document, session.run.path)
    else:
        shown = {key: place for key, place in origins.items() if origin or place != DEFAULT}
        session.console.text(toml_document(values, shown))


def _open_session(ctx: typer.Context, command: str, shared: dict[str, Any], given: dict[str, Any]) -> Session:
    console = ctx.obj if isinstance(ctx.obj, Console) else Console()
    console.as_json, console.quiet = shared["as_json"], shared["quiet"]
    console.reserve_stdout()
    flags = {key: value for key, value in given.items() if value is not None}
    flags |= {name: shared[name] for name in GENERAL if shared[name] is not None}
    flags |= parse_settings(shared["settings"] or [])
    options = {"config_file": shared["config"], "force": shared["force"], "dry_run": shared["dry_run"]}
    return open_session(shared["run"], command, flags, console, name=checked_name(shared["images_name"]), **options)
