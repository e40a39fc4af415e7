"""Where a run folder stands, as a document and as words for the screen. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcdm_cli.run.standing import DONE, MISSING, RunStanding, Standing, run_words, standing_of
from dcdm_cli.run.store import DEFAULT_RUN, RunFolder

COPIED = "  "  # before a line that is a command or a path
ORDER = ("score", "caption", "finetune", "distill", "export", "generate", "evaluate", "review")


def run_status(run: RunFolder) -> RunStanding:
    return standing_of(run)


def overview(commands: Mapping[str, str]) -> list[str]:
    """What `dcdm` alone shows: the usual order of commands, the others, and this folder's run."""
    lines = ["The usual order of commands (all in one run folder: --run DIR, or $DCDM_RUN):", ""]
    lines += [f"  dcdm {name:9} {commands[name]}" for name in ORDER]
    lines += ["", "Beside them:", ""]
    lines += [f"  dcdm {name:9} {text}" for name, text in commands.items() if name not in ORDER]
    lines += ["", "  dcdm COMMAND -h shows what a command can be told.", ""]
    return [*lines, *_here()]


def _here() -> list[str]:
    run = RunFolder(Path(os.environ.get("DCDM_RUN") or DEFAULT_RUN))
    if not run.path.is_dir():
        return [f"There is no run folder {run.path.name}/ here yet. Try: dcdm demo, or dcdm score FOLDER"]
    return sentences(standing_of(run))


def sentences(standing: RunStanding) -> list[str]:
    """What is done, what is not as it should be and why, and what comes next."""
    if not standing.exists:
        return [f"There is no run folder at {standing.path}.", "Next:", f"{COPIED}dcdm score FOLDER"]
    stages = standing.stages
    done = [stage.title for stage in stages if stage.state == DONE]
    other = [_reason(stage) for stage in stages if stage.state not in (DONE, MISSING)]
    finished = f"done: {', '.join(done)}" if done else "nothing is done yet"
    following = ["Next:", f"{COPIED}{standing.next}"] if standing.next else []
    if not following and not other:
        report, words = standing.path / "evaluation" / "report.html", run_words(RunFolder(standing.path))
        following = ["Everything is done. Open the report, or look at single images:"]
        following += [f"{COPIED}{report}", f"{COPIED}dcdm review{words}"]
    return [f"Run {standing.path.name}, {finished}.", *other, *following]


def _reason(stage: Standing) -> str:
    return f"{stage.title} is {stage.state}" + (f": {stage.why}" if stage.why else "") + "."


def shown_status(standing: RunStanding) -> list[Any]:
    """For a terminal: one table and the sentences that sum it up. What is to be copied stays in one piece."""
    from rich.text import Text

    from dcdm_cli.reports.standing import standing_table
    from dcdm_cli.reports.table import sentence

    table = [standing_table(standing).as_rich()] if standing.exists else []
    return [*table, *(Text(line) if line.startswith(COPIED) else sentence(line) for line in sentences(standing))]
