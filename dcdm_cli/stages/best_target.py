"""The target that was measured to be worth most: written by an experiment on validation images, used by `best`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dcdm_cli.errors import NotFoundError
from dcdm_cli.files import write_json
from dcdm_cli.gate import Share, Word, read_document
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import GenerateConfig
from dcdm_cli.run.store import RunFolder

BEST = "best"
SPREAD = 0.1  # standard deviation of the proposal, as the paper's
COMMAND = "dcdm evaluate experiment target"


class Proposal(BaseModel):
    """target.json of the evaluation folder. finetune: id of the record whose adapter it was measured with."""

    experiment: Word
    difficulty: Share
    interval: tuple[Share, Share]
    told: bool
    target: Word
    finetune: Word


def proposal_file(run: RunFolder) -> Path:
    return run.evaluation / "target.json"


def propose_target(session: Session, name: str, found: Sequence[Mapping[str, Any]]) -> Proposal | None:
    """Writes the proposal of the first cell of an experiment. found: `best` of its cells; none = nothing to propose."""
    if not found:
        return None
    best = found[0]
    # where it is not told, the curve may be chance: the default target stays
    target = f"normal:{best['asked']:g},{SPREAD:g}" if best["told"] else GenerateConfig().difficulty
    proposal = Proposal(
        experiment=name,
        difficulty=best["difficulty"],
        interval=tuple(best["interval"]),
        told=best["told"],
        target=target,
        finetune=session.run.require("finetune").id,
    )
    write_json(proposal_file(session.run), proposal.model_dump(mode="json"))
    return proposal


def with_best_target(session: Session) -> Session:
    """`--difficulty best` as the distribution it stands for. Raises NotFoundError where nothing was measured, or with
    another adapter."""
    if session.config.generate.difficulty != BEST:
        return session
    file = proposal_file(session.run)
    if not file.is_file():
        raise NotFoundError("--difficulty best: which difficulty is worth most was not measured here", COMMAND)
    found = read_document(file, Proposal, COMMAND)
    if found.finetune != session.run.require("finetune").id:
        raise NotFoundError(f"--difficulty best: {file} was measured with another adapter", f"{COMMAND} --force")
    low, high = found.interval
    known = f"most is worth {found.difficulty:.2f}, 95 % interval {low:.2f} to {high:.2f}"
    told = known if found.told else f"{known}: chance could have made it, the default stays"
    session.console.note(f"--difficulty best: {found.target} ({told})")
    return session.with_settings(generate={"difficulty": found.target})
