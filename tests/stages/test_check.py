"""What killed commands left over: named, and removed where nobody is at work."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from dcdm_cli import Run
from dcdm_cli.files import write_text
from dcdm_cli.stages.check import LEFT_OVER, REPAIRED
from dcdm_cli.stages.doctor import Finding

IN_SETS = ("generated/train/.x.png.1.ab.part", "generated/shards/.00001.lock.part", "sets/hard/train/.y.png.1.ab.part")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("adapter/.config.json.1.ab.part", *IN_SETS):
        write_text(tmp_path / "run" / name, "half")
    return Run(tmp_path / "run", quiet=True)


def texts(found: list[Finding], state: str) -> list[str]:
    return [finding.text for finding in found if finding.state == state]


def test_what_is_said_to_be_removed_is_gone(run: Run) -> None:
    said = run.check(repair=True)
    assert texts(said, LEFT_OVER) == [] and len(texts(said, REPAIRED)) == 4
    assert not [file for file in run.folder.path.rglob("*") if ".part" in file.name]
    assert texts(run.check(), LEFT_OVER) == texts(run.check(repair=True), REPAIRED) == []


def test_nothing_is_removed_where_a_part_is_at_a_shard_and_that_is_said(run: Run) -> None:
    with FileLock(run.folder.path / IN_SETS[1]).acquire(timeout=0):
        said = run.check(repair=True)
    assert sorted(texts(said, LEFT_OVER)) == sorted(IN_SETS[:2]) and len(texts(said, REPAIRED)) == 2
    assert all((run.folder.path / name).exists() for name in IN_SETS[:2])


def test_each_leftover_names_the_command_that_removes_it(run: Run) -> None:
    fixes = {finding.text: finding.fix for finding in run.check() if finding.state == LEFT_OVER}
    assert fixes["adapter/.config.json.1.ab.part"].startswith("the next command removes it")
    assert fixes[IN_SETS[0]].startswith("dcdm generate removes it")
    assert fixes[IN_SETS[2]].startswith("dcdm generate --name hard removes it")


def test_a_command_leaves_every_set_alone(run: Run) -> None:
    """A part of another set may be at work, which takes no lock of the run's."""
    with run.folder.lock("dcdm caption"):
        assert [name for name in IN_SETS if not (run.folder.path / name).exists()] == []


def test_what_waits_for_something_new_is_named(run: Run) -> None:
    for name in (
        ".export.old/x",
        "distilled/.export.old/x",
        "distilled/export/y",
        ".generated.old/x",
        "sets/.hard.old/x",
    ):
        write_text(run.folder.path / name, "x")
    fixes = {finding.text: finding.fix for finding in run.check() if finding.state == LEFT_OVER}
    assert fixes[".export.old"] == "dcdm export puts the new one in its place"
    assert fixes["distilled/.export.old"].startswith("the next command removes it")
    assert fixes[".generated.old"].startswith("dcdm generate --force goes on")
    assert fixes["sets/.hard.old"].startswith("dcdm generate --name hard --force goes on")
    said = run.check(repair=True)
    assert "distilled/.export.old was left over and is removed" in texts(said, REPAIRED)
    assert sorted(texts(said, LEFT_OVER)) == [".export.old", ".generated.old", "sets/.hard.old"]
