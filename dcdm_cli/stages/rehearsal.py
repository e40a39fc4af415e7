"""What `--dry-run` looks at: values with a form of their own and files that are named, as far as no model is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import NotFoundError
from dcdm_cli.run.keeping import refuse_replacing

if TYPE_CHECKING:
    from dcdm_cli.run.session import Session
    from dcdm_cli.run.settings import GenerateConfig


def rehearse(command: str, session: Session, own: Mapping[str, Any]) -> None:
    """own: the command's own parameters by name."""
    if command == "score":
        _score(session, own["source"])
    elif command == "finetune":
        _finetune(session)
    elif command == "generate":
        _generate(session, own["plan_file"])


def _score(session: Session, source: str | None) -> None:
    """Raises what `run_score` would before it reads an image: the source is listed, as it is there."""
    from dcdm_cli.stages.score import check_inputs, refuse_other_source, settled_source

    check_inputs(session.config)
    _, _, stage = settled_source(session, source)
    if not session.force:
        refuse_other_source(session.run, stage)


def _finetune(session: Session) -> None:
    """Raises what keeps `run_finetune` from replacing an adapter. A run that is not scored yet has none."""
    from dcdm_cli.run.session import by_calls
    from dcdm_cli.stages.devices import settle_training
    from dcdm_cli.stages.finetune import WHAT, finetune_stage

    run = session.run
    if not session.force and run.record("score") and run.record("finetune"):
        refuse_replacing(run, finetune_stage(settle_training(by_calls(session))), WHAT)


def _generate(session: Session, plan_file: Path | None) -> None:
    """Raises what `run_generate` would of plan, target, budget and prompts. With an adapter, the plan is drawn."""
    from dcdm_cli.generation.targets import parse_target
    from dcdm_cli.stages.best_target import with_best_target
    from dcdm_cli.stages.generate import opened_plan

    if plan_file is not None:
        opened_plan(session, plan_file)
        return
    session = with_best_target(session)
    config = session.config.generate
    parse_target(config.difficulty)
    if not session.run.record("finetune"):
        _require_files(config)
        return
    from dcdm_cli.stages.plan import draw_plan

    draw_plan(session, config, _NoEngine())


class _NoEngine:
    """In place of the engine that a plan is drawn for; no such plan is kept."""

    generator = "dry run"


def _require_files(config: GenerateConfig) -> None:
    flags = {"--prompts": config.prompts, "--counts": config.counts, "--difficulty-file": config.difficulty_file}
    for flag, file in flags.items():
        if file is not None and not file.exists():
            raise NotFoundError(f"{flag} {file}: there is no such file", f"check the path after {flag}", file=file)
