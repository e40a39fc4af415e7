"""`dcdm config show`: every setting, its value and where it came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from dcdm_cli.api.session import resolve_for
from dcdm_cli.commands.options import print_settings, stage_command
from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.session import PIPELINE, Session, recorded_layers

BESIDE = ("review", "check", "push")  # of the commands that are no stage, those that settings say something to
EXAMPLES = (
    "dcdm config show --origin",
    "dcdm config show evaluate --run birds --origin",
    "dcdm config show finetune --run birds > settings.toml",
    "dcdm config show --preset digits --json",
)


def register(app: typer.Typer, summary: str) -> None:
    group = typer.Typer(help=summary, no_args_is_help=True)

    @stage_command(group, "show", help=summary, examples=EXAMPLES, prepare=as_command)
    def show(
        session: Session,
        command: Annotated[
            str | None, typer.Argument(help="As this command resolves them; without it, no record is asked.")
        ] = None,
        origin: Annotated[bool, typer.Option("--origin", help="Say so of defaults, and in --json, too.")] = False,
    ) -> None:
        print_settings(session, origin=origin)

    group.callback()(_group)
    app.add_typer(group, name="config")


def as_command(session: Session, *, command: str | None, origin: bool) -> Session:
    """The session with the settings that `command` would see. Raises UsageError for an unknown one."""
    if command is None:
        # the last command sees the records of all others
        if any(layer.values for layer in recorded_layers(session.run, PIPELINE[-1])):
            session.console.note("stages of this run decide settings of later ones: dcdm config show COMMAND")
        return session
    if command == "demo":
        from dcdm_cli.commands.demo import demo_settings

        return demo_settings(session, full=False)
    if command not in (known := (*PIPELINE, *BESIDE)):
        raise UsageError(f"unknown command {command!r}", nearest(command, [*known, "demo"]))
    resolved = resolve_for(command, session.run, session.console, session.given, session.config_file)
    return replace(session, resolved=resolved)


def _group() -> None:
    """Makes `show` a subcommand even while it is the only one."""
