"""Parts of a plan, made by processes that know nothing of each other, end in the files that one run makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.errors import UsageError
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.ledger import Ledger
from dcdm_cli.generation.run import run_part, run_shards
from dcdm_cli.run.progress import Job
from dcdm_cli.stages.parts import Part

from .fakes import NAMES, FakeMaker, contents, fake_measure, fake_plan

PLAN = fake_plan(22, shard_size=4)
PARTS = [Part(number, 3) for number in (1, 2, 3)]


def layout(folder: Path, format: str) -> Layout:
    return Layout(folder, format, "png", NAMES, PLAN.shards)


def maker() -> FakeMaker:
    return FakeMaker(measure=fake_measure)


def test_parts_share_a_plan_out() -> None:
    assert [list(part.shards(PLAN.shards)) for part in PARTS] == [[0, 3], [1, 4], [2, 5]]
    assert [list(Part(number, 4).shards(2)) for number in range(1, 5)] == [[0], [1], [], []]
    assert Part.parse("3/16") == Part(3, 16) and str(Part(3, 16)) == "3/16"
    for text in ("", "0/4", "5/4", "3", "a/b", "1/0", "-1/4"):
        with pytest.raises(UsageError, match="is no part"):
            Part.parse(text)


@pytest.mark.parametrize("format", ["folder", "parquet", "webdataset"])
def test_together_they_make_what_one_run_makes(tmp_path: Path, format: str) -> None:
    run_shards(PLAN, maker(), layout(tmp_path / "whole", format), Job())
    places = layout(tmp_path / "parts", format)
    made = [run_part(PLAN, maker(), places, Job(), part.shards(PLAN.shards)) for part in reversed(PARTS)]
    assert [part.made for part in made] == [6, 8, 8]
    assert not (places.folder / "samples.parquet").exists()  # nobody has seen the whole
    assert run_part(PLAN, maker(), places, Job(), PARTS[0].shards(PLAN.shards)).made == 0
    joined = run_shards(PLAN, maker(), places, Job())
    assert joined.made == 0 and joined.images == 22
    assert contents(places.folder) == contents(tmp_path / "whole")


def test_what_others_are_at_is_left_alone(tmp_path: Path) -> None:
    places = layout(tmp_path, "parquet")
    theirs = Ledger.open(PLAN, places, 4, shards=[1])
    unfinished = places.folder / "data" / ".train-00001.1.part"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half of a shard")
    with theirs.lock(0) as free:
        assert free
        assert run_part(PLAN, maker(), places, Job(), range(2)).made == 4  # shard 1 alone
    assert unfinished.exists()
    assert run_part(PLAN, maker(), places, Job(), range(2)).made == 4  # shard 0, once nobody is at it
