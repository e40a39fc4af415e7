"""One command as a group of processes: each knows its place, and the end of one is the end of all."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dcdm_cli.errors import DcdmError
from dcdm_cli.workers.ranks import Group, Ranks


def run(code: str, folder: Path, asked: str | None = None, count: int = 2) -> str:
    """asked: a signal to this process once all of the group have touched a file of theirs."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.05):
            if len(list(folder.glob("ready-*"))) == count:
                os.kill(os.getpid(), getattr(signal, str(asked)))
                return

    asking = threading.Thread(target=ask)
    if asked:
        asking.start()
    handlers, environment = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], dict(os.environ)
    try:
        with (folder / "out").open("w") as out:
            Group([sys.executable, "-c", code], ["cpu"] * count, folder / "logs", out, 1).run()
    finally:
        ended.set()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert dict(os.environ) == environment
    return (folder / "out").read_text()


def test_this_process_is_alone() -> None:
    assert Ranks.of_environment() == Ranks(0, 0, 1) and Ranks().is_main


def test_each_process_knows_its_place_and_the_first_one_speaks(tmp_path: Path) -> None:
    code = f"""
import json, os, pathlib
from dcdm_cli.workers.ranks import Ranks
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


def test_another_ones_failure_is_told_and_ends_the_rest(tmp_path: Path) -> None:
    code = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('out of memory on device 1')\ntime.sleep(100)"
    started = time.monotonic()
    with pytest.raises(DcdmError, match=r"process 1 of 2 failed \(exit code 1\): out of memory on device 1"):
        run(code, tmp_path)
    assert time.monotonic() - started < 30


def test_a_killed_process_is_named(tmp_path: Path) -> None:
    code = "import os, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(100)"
    with pytest.raises(DcdmError, match=r"process 1 of 2 failed \(killed by SIGKILL\)") as caught:
        run(code, tmp_path)
    assert "last checkpoint" in caught.value.hint


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_passed_on_once_and_the_first_one_may_save(
    tmp_path: Path, name: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """The others end at once; a second signal would cost the first one its checkpoint."""
    text = f"""
import os, pathlib, signal, sys, time
here, rank, heard = pathlib.Path({str(tmp_path)!r}), os.environ["RANK"], []
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda number, _: heard.append(number))
(here / ("ready-" + rank)).touch()
while not heard:
    time.sleep(0.02)
end = time.monotonic() + (1.0 if rank == "0" else 0.0)
while time.monotonic() < end:
    time.sleep(0.02)
print(*(signal.Signals(number).name for number in heard))
sys.exit({code})
"""
    with pytest.raises(SystemExit) as caught:
        run(text, tmp_path, asked=name)
    assert caught.value.code == code and (tmp_path / "out").read_text() == f"{name}\n"
    assert capfd.readouterr().err == "", "the launcher has nothing to add"


def test_a_signal_that_is_to_be_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup, when the terminal goes."""
    code = f"""
import os, pathlib, time
(pathlib.Path({str(tmp_path)!r}) / ("ready-" + os.environ["RANK"])).touch()
time.sleep(1)
print("done")
"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(code, tmp_path, asked="SIGHUP", count=1) == "done\n"
    finally:
        signal.signal(signal.SIGHUP, before)
