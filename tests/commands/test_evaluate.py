"""`dcdm evaluate JOB`: which job is meant, by the word or by the flag of before, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from dcdm_cli.cli import build_app
from dcdm_cli.commands.evaluate import do_job
from dcdm_cli.commands.jobs import OLD_FLAGS, chosen_job
from dcdm_cli.errors import DcdmError, NotFoundError, UsageError
from dcdm_cli.stages.evaluation_jobs import JOBS

from .conftest import Open

NONE = dict.fromkeys(OLD_FLAGS)


@pytest.mark.parametrize("job", [job for job in JOBS if job != "experiment"])
def test_a_job_is_a_word(job: str, session: Open) -> None:
    assert chosen_job(session(), job, None, NONE) == (job, "")
    with pytest.raises(UsageError, match="takes no 'controls'"):
        chosen_job(session(), job, "controls", NONE)


def test_without_a_word_all_is_measured(session: Open) -> None:
    assert chosen_job(session(), None, None, NONE) == ("run", "")


def test_an_experiment_has_a_name(session: Open) -> None:
    assert chosen_job(session(), "experiment", "controls", NONE) == ("experiment", "controls")
    with pytest.raises(UsageError, match="needs its name"):
        chosen_job(session(), "experiment", None, NONE)


@pytest.mark.parametrize(("flag", "job"), OLD_FLAGS.items())
def test_the_flags_of_before_still_work_and_name_the_word(
    flag: str, job: str, session: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    which = "controls" if job == "experiment" else ""
    assert chosen_job(session(as_json=False), None, None, {**NONE, flag: which or True}) == (job, which)
    assert f"dcdm evaluate {job} {which}".strip() in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "old", "name", "said"),
    [
        (("experimnet", "controls"), {}, "", "no job 'experimnet'"),
        (("check", None), {"--atlas": True}, "", "different jobs"),
        ((None, None), {"--artefacts": True, "--filter": True}, "", "different jobs"),
        (("atlas", None), {}, "hard", "--name is for check and filter"),
    ],
)
def test_what_is_no_job_is_refused(
    words: tuple[str | None, str | None], old: dict[str, bool], name: str, said: str, session: Open
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        do_job(session(), words, NONE | old, name)
    assert refused.value.hint


@pytest.mark.parametrize("job", ["check", "filter"])
def test_finished_images_are_asked_for(job: str, session: Open) -> None:
    with pytest.raises(NotFoundError):
        do_job(session(), (job, None), NONE)


def test_an_unknown_experiment_is_named(session: Open) -> None:
    with pytest.raises(DcdmError, match="nothing-like-it"):
        do_job(session(), ("experiment", "nothing-like-it"), NONE)


def test_all_jobs_are_flags_of_the_app() -> None:
    """What messages name (tests/test_messages.py) and old scripts say is understood by the app itself."""
    app: Any = get_command(build_app(["evaluate"]))
    parameters = {name for parameter in app.commands["evaluate"].params for name in parameter.opts}
    assert {*OLD_FLAGS, "job", "which"} <= parameters


def test_two_folders_say_which_job_is_meant(session: Open, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(NotFoundError, match="gone"):
        do_job(session(), (None, None), NONE, folders=(gone, tmp_path))
    with pytest.raises(UsageError, match="compares two folders"):
        do_job(session(), (None, None), NONE, folders=(gone, None))
