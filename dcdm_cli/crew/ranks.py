"""One command run as a group of processes that train together: which one this is, and starting such a group.

The environment is torchrun's (RANK, WORLD_SIZE, ...), so `accelerate launch` and `torchrun` start groups as well.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dcdm_cli.errors import DcdmError, ExitCode

GRACE_S = 20.0  # what the others get once one process has failed
POLL_S = 0.1
SHOWN = 15  # last lines of a failed process


@dataclass(frozen=True)
class Ranks:
    """rank: of this process, 0 is the one that writes and prints. local: among those of this machine."""

    rank: int = 0
    local: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        if not (rank.isdecimal() and world.isdecimal()):
            return cls()
        return cls(int(rank), int(os.environ.get("LOCAL_RANK", rank)), int(world))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


class Group:
    """The same command once per device. Processes are in a session of their own: a Ctrl-C reaches this process alone,
    which passes it on once; the group then agrees to stop after the step it is at."""

    def __init__(
        self, words: Sequence[str], devices: Sequence[str], logs: Path, stdout: IO[Any] | None, threads: int | None
    ) -> None:
        """logs: folder for what processes other than the first say. stdout: of the first; the others have none."""
        self.words, self.devices, self.logs, self.stdout = list(words), list(devices), logs, stdout
        self.threads = threads
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, asked: Callable[[], str | None]) -> None:
        """Returns when all are done. asked: the signal that asked this process to stop, or None.

        Raises DcdmError with the last words of a process that failed, or SystemExit with the first one's code when
        that one failed and has said why.
        """
        try:
            self._start()
            self._watch(asked)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def _start(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        shared = self._shared_environment()
        for rank in range(len(self.devices)):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._log(rank).open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        self.words,
                        env=os.environ | shared | own,
                        stdin=subprocess.DEVNULL,
                        stdout=self.stdout if rank == 0 else subprocess.DEVNULL,
                        stderr=None if rank == 0 else log,
                        start_new_session=True,
                    )
                )

    def _shared_environment(self) -> dict[str, str]:
        count = str(len(self.devices))
        found = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _free_port(),
        }
        if self.devices[0] == "cpu":
            found["ACCELERATE_USE_CPU"] = "true"
        else:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(_visible(device) for device in self.devices)
        if self.threads:
            found["OMP_NUM_THREADS"] = str(self.threads)
        return found

    def _watch(self, asked: Callable[[], str | None]) -> None:
        told = False
        while any(process.poll() is None for process in self.processes):
            name = asked()
            if name is not None and not told:
                self.processes[0].send_signal(getattr(signal, name))
                told = True
            culprit = next((rank for rank, process in enumerate(self.processes) if process.poll()), None)
            if culprit is not None:
                self._end_the_others()
                self._raise_for(culprit)
            time.sleep(POLL_S)
        for rank, process in enumerate(self.processes):
            if process.returncode:
                self._raise_for(rank)

    def _end_the_others(self) -> None:
        """They may be saving, or they may wait for ever for the one that failed."""
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(POLL_S)
        for process in self.processes:
            process.kill()
            process.wait()

    def _raise_for(self, culprit: int) -> None:
        """culprit: the one that ended first with a code of its own; the others may have failed because of it."""
        first, code = self.processes[0].returncode, self.processes[culprit].returncode
        if first > 0 and (culprit == 0 or first in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)):
            raise SystemExit(first)  # it has said why
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        log = self._log(culprit)
        lines = log.read_text("utf-8", "replace").splitlines()[-SHOWN:]
        raise DcdmError(
            f"process {culprit} of {len(self.devices)} failed ({how})" + (f": {' / '.join(lines)}" if lines else ""),
            "run the same command again to continue from the last checkpoint",
            file=log,
        )

    def _log(self, rank: int) -> Path:
        return self.logs / f"process-{rank}.log"


def _visible(device: str) -> str:
    """cuda:2 as the environment names it, if the visible devices are renumbered already."""
    number = int(device.partition(":")[2] or 0)
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number] if number < len(names) else str(number)


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
