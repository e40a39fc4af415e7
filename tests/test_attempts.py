"""Seconds over all attempts, and those that do not grow with the work."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.run import one_off
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.run.timing import Attempt


def test_loading_inside_of_loading_counts_once_and_goes_to_the_stage_around(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(one_off, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with one_off.collected() as outer:
        with one_off.collected() as inner, one_off.loading(), one_off.loading():  # they ask the clock at 0, 1 and 2
            pass
        one_off.built(2.0)
    assert inner.seconds() == {"load_seconds": 2}
    assert outer.seconds() == {"load_seconds": 2, "build_seconds": 2.0}


def test_the_first_batch_is_compared_with_others_of_its_size() -> None:
    with one_off.collected() as found:
        one_off.rendered(9.0, 8)  # of no engine that was opened here
        one_off.opened()
        for seconds, images in ((5.0, 8), (0.1, 1), (1.0, 8), (1.2, 8), (0.1, 1)):
            one_off.rendered(seconds, images)
        one_off.opened()
        one_off.rendered(5.0, 8)  # nothing to compare it with
    assert found.seconds() == {"warmup_seconds": pytest.approx(3.9)}


def stopped(attempt: Attempt) -> None:
    with pytest.raises(InterruptedRunError), attempt.measured(), one_off.loading():
        time.sleep(0.02)
        raise InterruptedRunError("stopped", "again", signal_name="SIGTERM")


def test_a_stopped_attempt_counts_until_its_work_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "x.stopped.json"
    for _ in range(2):
        stopped(Attempt(file, "key"))
    last = Attempt(file, "key")
    with last.measured():
        time.sleep(0.02)
    assert last.seconds >= 0.06 and last.one_off.seconds()["load_seconds"] >= 0.04
    for other in (Attempt(file, "other"),):
        assert other.seconds == 0
    last.over()
    assert not file.exists() and Attempt(file, "key").seconds == 0
    file.write_text("{")
    assert Attempt(file, "key").seconds == 0


def test_a_record_holds_the_seconds_of_all_its_attempts(tmp_path: Path) -> None:
    run, stage = RunFolder(tmp_path), Stage("score", {"a": 1}, {})
    run.create()

    def stop() -> Outcome:
        raise KeyboardInterrupt

    def attempt(**how: bool) -> StageRecord:
        with pytest.raises(KeyboardInterrupt):
            run.run(stage, stop, force=True)
        (file,) = (tmp_path / "records").glob("*.stopped.json")
        spent = json.loads(file.read_text()) | {"seconds": 1000.0, "one_off": {"load_seconds": 9.0}}
        file.write_text(json.dumps(spent))
        return run.run(stage, lambda: Outcome([], "f"), **how)[0]

    record = attempt()
    assert record.seconds >= 1000 and record.one_off == {"load_seconds": 9.0}
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["score.json"]
    assert json.loads((tmp_path / "records" / "score.json").read_text())["one_off"] == record.one_off
    assert attempt(force=True).seconds >= 1000  # what is forced goes on with what it had begun


def test_records_of_earlier_releases_are_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    stage = Stage("score", {}, {})
    run.run(stage, lambda: Outcome([], "f"))
    file = tmp_path / "records" / "score.json"
    old = json.loads(file.read_text())
    del old["one_off"]
    file.write_text(json.dumps({**old, "apart": {"load_seconds": 9.0}}))
    found = RunFolder(tmp_path).record("score")
    assert found is not None and found.one_off == {"load_seconds": 9.0}
