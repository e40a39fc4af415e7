"""`generate --difficulty best`: what was measured, with this adapter, and nothing else."""

from __future__ import annotations

import pytest

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.best_target import proposal_file, propose_target
from dcdm_cli.stages.generate import run_generate

from .conftest import Open

FOUND = {"difficulty": 0.62, "interval": [0.5, 0.7], "told": True, "asked": 0.65}


def test_it_is_the_distribution_that_was_worth_most(session: Open, run: RunFolder) -> None:
    propose_target(session(), "target", [FOUND])
    opened = session(generate__difficulty="best", generate__count=6)
    record = run_generate(opened)
    assert record.config["difficulty"] == "normal:0.65,0.1"
    same = run_generate(session(generate__difficulty="normal:0.65,0.1", generate__count=6))
    assert same.started == record.started  # what it stands for, and so nothing new


def test_where_nothing_could_be_told_the_default_stays(session: Open, run: RunFolder) -> None:
    made = propose_target(session(), "target", [FOUND | {"told": False}])
    assert made is not None and made.target == "normal:0.5,0.1"
    assert propose_target(session(), "target", []) is None


def test_it_must_have_been_measured(session: Open, run: RunFolder) -> None:
    with pytest.raises(NotFoundError, match="was not measured here") as missing:
        run_generate(session(generate__difficulty="best"))
    assert missing.value.hint == "dcdm evaluate experiment target"


def test_it_must_have_been_measured_with_this_adapter(session: Open, run: RunFolder) -> None:
    propose_target(session(), "target", [FOUND])
    run.run(Stage("finetune", {"steps": 9}, {}), lambda: Outcome([run.adapter], "y"))
    with pytest.raises(NotFoundError, match="another adapter"):
        run_generate(session(generate__difficulty="best"))


@pytest.mark.parametrize("value", ["2.5", "-1", '"x"', "NaN"])
def test_an_edited_proposal_is_not_believed(session: Open, run: RunFolder, value: str) -> None:
    propose_target(session(), "target", [FOUND])
    file = proposal_file(run)
    file.write_text(file.read_text().replace("0.62", value))
    with pytest.raises(MismatchError, match=r"target\.json"):
        run_generate(session(generate__difficulty="best"))
