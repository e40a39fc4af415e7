"""What is in files of the user's own that the settings of generation name, for the stages that depend on it."""

from __future__ import annotations

from dcdm_cli.files import hash_file
from dcdm_cli.run.session import Session
from dcdm_cli.stages.label_check import check_input
from dcdm_cli.stages.prompts import prompt_input

TABLES = ("counts", "difficulty_file")
GONE = "gone"  # whoever reads it says so


def image_input(session: Session) -> dict[str, str]:
    """Of every stage that makes images: label check, prompts and few-step LoRA, as far as there are any."""
    return check_input(session) | prompt_input(session) | few_steps(session)


def few_steps(session: Session) -> dict[str, str]:
    """Identity of the few-step LoRA; nothing without one, so that what is from before there were any is found."""
    from dcdm_cli.model.few_steps import identity_of

    identity = identity_of(session.config.generate)
    return {"extra_lora": identity} if identity else {}


def table_input(session: Session) -> dict[str, str]:
    """Of what draws a plan from the settings: its tables of counts and difficulties."""
    files = {name: getattr(session.config.generate, name) for name in TABLES}
    return {name: hash_file(file) if file.is_file() else GONE for name, file in files.items() if file is not None}
