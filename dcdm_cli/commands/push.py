"""`dcdm push adapter|images OWNER/NAME`: the adapter or a set of images into a repository on the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdm_cli.api import completion
from dcdm_cli.api.run import Run
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session
from dcdm_cli.stages.push import WHATS

EXAMPLES = ("dcdm push adapter me/birds-dcdm --run birds", "dcdm push images me/birds-hard --run birds --name hard")
What = Annotated[
    str, typer.Argument(help="adapter or images.", metavar="|".join(WHATS), autocompletion=completion.choices(WHATS))
]
Name = Annotated[str, typer.Option(help="Which set of images.", metavar="NAME", autocompletion=completion.set_names)]


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "push", help=summary, examples=EXAMPLES, shared=("run",))
    def push(
        session: Session,
        what: What,
        repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made if it is new.")],
        name: Name = "",
        public: Annotated[bool, typer.Option("--public", help="Everybody may see it.")] = False,
    ) -> None:
        done = Run.of(session).push(what, repository, public=public)
        session.console.result(done, done["url"])
