"""Several generated sets in one run: made, listed and kept apart by name, never replaced unless told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.run.session import Session, checked_name
from dcdm_cli.run.standing import standing_of
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.generate import run_generate

from ..generation.fakes import contents
from .conftest import Open


def named(session: Open, name: str, **flags: object) -> Session:
    opened = session(**flags)
    return replace(opened, run=opened.run.with_images(name))


def test_sets_do_not_touch_each_other(session: Open, run: RunFolder) -> None:
    run_generate(session(generate__count=3, generate__ratio=None))
    before = contents(run.generated)
    record = run_generate(named(session, "hard", generate__count=4, generate__difficulty="fixed:0.7"))
    assert record.results["images"] == 4 and record.outputs == ["sets/hard/samples.parquet"]
    assert len(read_manifest(run.sets / "hard" / "samples.parquet")) == 4
    assert contents(run.generated) == before
    assert run.set_names() == ["hard"]
    states = {stage.title: (stage.state, stage.images) for stage in standing_of(run).stages}
    assert states["generate"][1] == 3 and states["generate (hard)"] == ("done", 4)
    again = run_generate(named(session, "hard", generate__count=4, generate__difficulty="fixed:0.7"))
    assert again.started == record.started, "nothing changed: skipped"


def test_a_set_is_replaced_only_when_told(session: Open, run: RunFolder) -> None:
    run_generate(named(session, "hard", generate__count=3))
    before = contents(run.sets / "hard")
    with pytest.raises(MismatchError, match="another plan") as refused:
        run_generate(named(session, "hard", generate__count=4))
    assert "--name" in refused.value.hint and contents(run.sets / "hard") == before
    told: Callable[..., Session] = lambda **flags: named(session, "hard", force=True, **flags)  # noqa: E731
    assert run_generate(told(generate__count=4)).results["images"] == 4


@pytest.mark.parametrize("name", ["../x", "a/b", "Hard", ".x", "a b", "x" * 41, "-x"])
def test_names_are_folders_everywhere(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a generated set"):
        checked_name(name)


def test_all_is_no_set(session: Open) -> None:
    with pytest.raises(UsageError, match="all sets"):
        run_generate(named(session, "all"))
