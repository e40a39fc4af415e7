"""Where a run folder stands, and what was found of a machine, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from dcdm_cli.reports.formatting import NOTHING, duration
from dcdm_cli.reports.table import ResultTable
from dcdm_cli.run.standing import RunStanding, Standing, sized
from dcdm_cli.safe_text import show

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def standing_table(standing: RunStanding) -> ResultTable:
    columns = ("stage", "state", "images", "time", "size", "device", "begun, UTC")
    return ResultTable(f"Run folder {standing.path.name}", columns, tuple(_row(stage) for stage in standing.stages))


def findings_grid(findings: Sequence[Any]) -> Table:
    """What `dcdm doctor` found: state, topic, and text with its remedy; fits 80 columns. Findings are of that stage."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        text = show(finding.text) + (f"; try: {show(finding.fix)}" if finding.fix else "")
        grid.add_row(Text(finding.state, style=STYLES.get(finding.state, "")), Text(finding.topic), Text(text))
    return grid


def _row(stage: Standing) -> tuple[str, ...]:
    return (
        stage.title,
        stage.state,
        f"{stage.images:,}" if stage.images is not None else "",
        duration(stage.seconds) if stage.seconds is not None else NOTHING,
        sized(stage.size) if stage.size else NOTHING,
        stage.device,
        stage.started[5:16].replace("T", " "),
    )
