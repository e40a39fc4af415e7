"""One command as a group of processes: each knows its place, and the end of one is the end of all."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from dcdm_cli.crew import ranks
from dcdm_cli.crew.ranks import Group, Ranks
from dcdm_cli.errors import DcdmError


def run(code: str, folder: Path, asked: str | None = None, count: int = 2) -> str:
    started = threading.Event()
    threading.Timer(1.0, started.set).start()
    with (folder / "out").open("w") as out:
        group = Group([sys.executable, "-c", code], ["cpu"] * count, folder / "logs", out, 1)
        group.run(lambda: asked if asked and started.is_set() else None)
    return (folder / "out").read_text()


def test_this_process_is_alone() -> None:
    assert Ranks.of_environment() == Ranks(0, 0, 1) and Ranks().is_main


def test_each_process_knows_its_place_and_the_first_one_speaks(tmp_path: Path) -> None:
    code = f"""
import json, os, pathlib
from dcdm_cli.crew.ranks import Ranks
me = Ranks.of_environment()
facts = [me.rank, me.local, me.world, os.environ["ACCELERATE_USE_CPU"], os.environ["OMP_NUM_THREADS"]]
pathlib.Path({str(tmp_path)!r}, str(me.rank)).write_text(json.dumps(facts))
print("I am", me.rank)
"""
    assert run(code, tmp_path, count=3) == "I am 0\n"
    assert [json.loads((tmp_path / str(i)).read_text()) for i in range(3)] == [[i, i, 3, "true", "1"] for i in range(3)]


def test_a_failure_of_the_first_is_the_commands_own(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run("import os, sys; sys.exit(12 if os.environ['RANK'] == '0' else 0)", tmp_path)
    assert caught.value.code == 12


def test_another_ones_failure_is_told_and_ends_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.5)
    code = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('out of memory on device 1')\ntime.sleep(100)"
    started = time.monotonic()
    with pytest.raises(DcdmError, match=r"process 1 of 2 failed \(exit code 1\): out of memory on device 1"):
        run(code, tmp_path)
    assert time.monotonic() - started < 30


def test_a_killed_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.5)
    code = "import os, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(100)"
    with pytest.raises(DcdmError, match=r"process 1 of 2 failed \(killed by SIGKILL\)") as caught:
        run(code, tmp_path)
    assert "last checkpoint" in caught.value.hint


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_passed_on_once(tmp_path: Path, name: str) -> None:
    """The first process tells the others itself; here they watch for a file."""
    code = f"""
import os, pathlib, signal, sys, time
said, heard = pathlib.Path({str(tmp_path)!r}, "stop"), []
signal.signal(signal.{name}, lambda *_: (heard.append(1), said.touch()))
while not said.exists():
    time.sleep(0.02)
time.sleep(0.3)
print(len(heard))
sys.exit(130)
"""
    with pytest.raises(SystemExit) as caught:
        run(code, tmp_path, asked=name)
    assert caught.value.code == 130 and (tmp_path / "out").read_text() == "1\n"
