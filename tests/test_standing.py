"""Where a run folder stands: every state a stage can be in, and the command that goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dcdm_cli.console import Console
from dcdm_cli.errors import MismatchError
from dcdm_cli.run.holder import process_start
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session, peaks_told
from dcdm_cli.run.standing import RunStanding, next_command, run_words, sized, standing_of
from dcdm_cli.run.store import Outcome, RunFolder, Stage

from .nested import nested


def make(run: RunFolder, name: str, *after: str, **results: int) -> None:
    """A stage that made one file, recorded as stages are."""
    file = run.path / f"{name}.out"
    file.write_bytes(b"x" * 1000)
    inputs = {earlier: run.require(earlier).id for earlier in after}
    run.run(Stage(name, {"seed": len(results)}, inputs), lambda: Outcome([file], name, results), force=True)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    make(folder, "score", images=12)
    make(folder, "caption", "score")
    return folder


def states(standing: RunStanding) -> dict[str, str]:
    return {stage.title: stage.state for stage in standing.stages}


def test_done_and_not_yet_and_what_comes_next(run: RunFolder) -> None:
    standing = standing_of(run)
    assert states(standing) | {"score": "done", "caption": "done", "finetune": "not yet"} == states(standing)
    assert standing.next == f"dcdm finetune --run {run.path}"
    assert standing.stages[0].images == 12 and standing.stages[0].seconds is not None
    assert json.loads(json.dumps(standing.document()))["stages"][0]["state"] == "done"


def test_the_next_command_is_told_when_a_stage_was_done(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(run, resolve(), Console(), False, False, {})
    with peaks_told(session):
        pass
    assert "next" not in capsys.readouterr().err  # nothing was done
    with peaks_told(session):
        make(run, "finetune", "score", "caption")
    assert next_command(run) == standing_of(run).next == f"dcdm generate --run {run.path}"
    assert capsys.readouterr().err.endswith(f"\nnext: dcdm generate --run {run.path}\n")


def test_a_folder_of_the_usual_name_needs_no_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DCDM_RUN", raising=False)
    assert (
        run_words(RunFolder(Path("dcdm-run"))) == "" and run_words(RunFolder(Path("my birds"))) == " --run 'my birds'"
    )
    monkeypatch.setenv("DCDM_RUN", "my birds")
    assert run_words(RunFolder(Path("my birds"))) == ""


def test_what_was_made_from_something_older_is_stale_and_so_is_what_follows(run: RunFolder) -> None:
    make(run, "finetune", "score", "caption")
    make(run, "generate", "finetune")
    make(run, "score", images=13, rejected=1)
    standing = standing_of(run)
    found = {stage.stage: (stage.state, stage.why) for stage in standing.stages}
    assert found["score"] == ("done", "")
    assert found["caption"] == ("stale", "score was made again since")
    assert found["finetune"][0] == "stale" and found["generate"] == ("stale", "finetune is stale")
    assert standing.next == f"dcdm caption --run {run.path}"


def test_a_distilled_adapter_has_its_own_calibration_and_export(run: RunFolder) -> None:
    """Each of two adapters: what was made with one is not stale because the other was made again."""
    make(run, "finetune", "score", "caption")
    make(run, "calibrate", "finetune")
    assert not [title for title in states(standing_of(run)) if "distilled" in title]
    make(run, "distill", "finetune")
    ours = run.with_distilled(True)
    make(ours, "calibrate", "finetune", "distill")
    file = run.path / "images.out"
    file.write_bytes(b"x")
    inputs = {**ours.adapter_ids(), "calibrate": ours.require("calibrate").id}
    run.run(Stage("generate", {"guidance": "distilled"}, inputs), lambda: Outcome([file], "x"))
    found = states(standing_of(run))
    assert {found[title] for title in ("calibrate", "distill", "calibrate (distilled)", "generate")} == {"done"}
    assert found["export (distilled)"] == found["export"] == "not yet"
    make(run, "calibrate", "finetune", images=1)  # of the fine-tuned adapter
    assert states(standing_of(run))["generate"] == "done"
    make(ours, "calibrate", "finetune", "distill", images=2)
    assert states(standing_of(run))["generate"] == "stale"
    make(run, "distill", "finetune", images=3)
    standing = standing_of(run)
    assert states(standing)["calibrate (distilled)"] == "stale" and standing.next == f"dcdm distill --run {run.path}"
    make(run, "finetune", "score", "caption", images=4)
    assert states(standing_of(run))["distill"] == "stale"
    with pytest.raises(MismatchError, match="before the last fine-tuning"):
        ours.adapter_ids()


def test_an_output_that_is_gone_makes_a_stage_stale(run: RunFolder) -> None:
    (run.path / "score.out").unlink()
    assert standing_of(run).stages[0].why == "score.out is gone"


def test_a_damaged_record_is_a_state_and_not_an_error(run: RunFolder) -> None:
    (run.path / "records" / "caption.json").write_text("{")
    standing = standing_of(run)
    assert states(standing)["caption"] == "damaged" and standing.next.startswith("dcdm caption --force")


def test_what_runs_is_seen_and_what_was_killed_is_not_taken_for_running(run: RunFolder) -> None:
    with run.lock("dcdm finetune"):
        standing = standing_of(run)
        assert states(standing)["finetune"] == "running" and standing.next == ""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    holder = {"host": socket.gethostname(), "pid": int(gone.stdout), "command": "dcdm finetune", "since": "now"}
    (run.path / ".lock.json").write_text(json.dumps(holder))
    assert states(standing_of(run))["finetune"] == "not yet"
    (run.path / ".lock.json").write_text(json.dumps({**holder, "pid": os.getpid(), "began": "1"}))
    if process_start(os.getpid()):
        assert states(standing_of(run))["finetune"] == "not yet", "this process has the number of one that is gone"
    (run.path / ".lock.json").write_text(json.dumps({**holder, "host": "elsewhere"}))
    assert states(standing_of(run))["finetune"] == "running"


def test_when_a_process_began_tells_it_from_others() -> None:
    words = [sys.executable, "-c", "import ctypes; ctypes.CDLL(None).prctl(15, b'a ) b', 0, 0, 0); print(); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline()
        began = process_start(other.pid)
        other.communicate("\n")
    if began:  # a system that says it
        assert began.isdecimal() and int(began) > int(process_start(os.getpid()))
    assert process_start(other.pid) == ""


def test_folders_nested_a_thousand_deep_and_pipes_end_nothing(run: RunFolder) -> None:
    for name in ("records/.score.begun", ".lock.json", "records/finetune.stopped.json"):
        os.mkfifo(run.path / name)
    with nested(run.generated, "x.json"):
        standing = standing_of(run)
    found = {stage.stage: stage for stage in standing.stages}
    assert found["score"].state == "done" and found["generate"].size == 1
    with pytest.raises(MismatchError, match="it is no file"):
        run.sealed([run.samples])


def test_a_stopped_stage_says_what_it_has_taken(run: RunFolder) -> None:
    run.stopped_file("finetune").write_text(json.dumps({"of": "x", "seconds": 71.5}))
    found = {stage.stage: stage for stage in standing_of(run).stages}["finetune"]
    assert (found.state, found.seconds) == ("stopped", 71.5)


def test_named_sets_stand_beside_the_one_without_a_name(run: RunFolder) -> None:
    make(run, "finetune", "score", "caption")
    make(run.with_images("hard"), "generate", "finetune")
    standing = standing_of(run)
    assert states(standing)["generate (hard)"] == "done" and states(standing)["generate"] == "not yet"


def test_no_run_folder_is_no_error_and_nothing_is_made(tmp_path: Path) -> None:
    standing = standing_of(RunFolder(tmp_path / "none"))
    assert not standing.exists and os.listdir(tmp_path) == []


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (81_200, "81 kB"), (3_400_000_000, "3.4 GB")])
def test_sizes(count: int, text: str) -> None:
    assert sized(count) == text
