"""`dcdm config show`: every setting, its value and where it came from."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdm_cli.commands.options import print_settings, stage_command
from dcdm_cli.run.session import Context

EXAMPLES = ("dcdm config show --origin", "dcdm config show --preset digits --json")


def register(app: typer.Typer, summary: str) -> None:
    group = typer.Typer(help=summary, no_args_is_help=True)

    @stage_command(group, "show", help=summary, examples=EXAMPLES)
    def show(
        context: Context,
        origin: Annotated[bool, typer.Option("--origin", help="Also where each value came from.")] = False,
    ) -> None:
        print_settings(context, origin=origin)

    group.callback()(_group)
    app.add_typer(group, name="config")


def _group() -> None:
    """Makes `show` a subcommand even while it is the only one."""
