"""`dcdm review`: images to look at, as a CSV that comes back corrected and as a page with thumbnails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdm_cli.api.run import Run
from dcdm_cli.commands.options import stage_command
from dcdm_cli.run.session import Session

EXAMPLES = (
    "dcdm review --run birds",
    "dcdm review --run birds --most 200",
    "dcdm score photos/ --run birds --drop birds/review/review.csv --relabel birds/review/review.csv",
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "review", help=summary, examples=EXAMPLES, shared=("run",))
    def review(
        session: Session,
        most: Annotated[int, typer.Option(help="Images of each group at most.", min=1)] = 60,
    ) -> None:
        from dcdm_cli.stages.review import review_lines

        document = Run.of(session).review(most)
        session.console.result(document, Path(document["page"]), review_lines(document))
