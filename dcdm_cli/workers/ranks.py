"""One command run as a group of processes that train together: which one this is, and starting such a group.

The environment is torchrun's (RANK, WORLD_SIZE, ...), so `accelerate launch` and `torchrun` start groups as well.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dcdm_cli.errors import DcdmError, ExitCode
from dcdm_cli.signals import SIGNALS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig

LOCAL = "127.0.0.1"
STOP_S = 300  # what a group that was asked to stop has for the step it is at and a checkpoint, before it is killed
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
    """The same command once per device, started and watched by torch's elastic launcher. Each process is in a session
    of its own: a Ctrl-C reaches this one alone, which passes it on; the group agrees to stop after the step it is at.
    """

    def __init__(
        self, words: Sequence[str], devices: Sequence[str], logs: Path, stdout: IO[Any], threads: int | None
    ) -> None:
        """words: program and arguments. logs: folder for what processes other than the first say, emptied first.
        stdout: of the first."""
        self.words, self.devices, self.logs, self.stdout = list(words), list(devices), logs, stdout
        self.threads = threads

    def run(self) -> None:
        """Returns when all are done. In the main thread, for the signals' sake.

        Raises DcdmError with the last words of a process that failed, or SystemExit: with the first one's code when
        that failed and has said why, with a stop's when a signal asked for one.
        """
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import elastic_launch

        # `_raise_for` would quote an earlier group's
        shutil.rmtree(self.logs, ignore_errors=True)
        program, *arguments = self.words
        with _environment(self._settings()), _signals_kept(), _stdout_is(self.stdout), _silent_launcher():
            try:
                elastic_launch(self._config(), program)(*arguments)
            except SignalException as stop:
                raise SystemExit(
                    ExitCode.INTERRUPTED if stop.sigval == signal.SIGINT else ExitCode.TERMINATED
                ) from stop
            except ChildFailedError as failed:
                self._raise_for(failed)

    def _config(self) -> LaunchConfig:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
        from torch.distributed.launcher.api import LaunchConfig

        return LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(self.devices),
            run_id="group",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOCAL}:0",
            local_addr=LOCAL,  # otherwise the machine's own name, which need not be known to a resolver
            max_restarts=0,
            # from 1 on: what the first one says is what the command says
            logs_specs=DefaultLogsSpecs(str(self.logs), dict.fromkeys(range(1, len(self.devices)), Std.ALL)),
            signals_to_handle=",".join(name for name in SIGNALS if _is_heard(name)),
        )

    def _settings(self) -> dict[str, str]:
        """The environment of launcher and processes, besides what the launcher says to each."""
        # a variable, not a field of LaunchConfig: torch 2.11 has no such field, and stops after its 30 s
        found = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_S))}
        found |= {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        # by itself accelerate takes a GPU that is there
        if self.devices[0] == "cpu":
            return found | {"ACCELERATE_USE_CPU": "true"}
        return found | {"CUDA_VISIBLE_DEVICES": ",".join(_visible(device) for device in self.devices)}

    def _raise_for(self, failed: ChildFailedError) -> None:
        culprit, first = failed.get_first_failure()  # the others may have failed because of it
        code = first.exitcode
        if code > 0 and (culprit == 0 or code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)):
            raise SystemExit(code)  # the first process has said why
        how = f"exit code {code}" if code > 0 else f"killed by {first.signal_name()}"
        log = next(self.logs.glob(f"*/attempt_0/{culprit}/stderr.log"), None)  # the first one's is the terminal
        lines = log.read_text("utf-8", "replace").splitlines()[-SHOWN:] if log else []
        raise DcdmError(
            f"process {culprit} of {len(self.devices)} failed ({how})" + (f": {' / '.join(lines)}" if lines else ""),
            "run the same command again to continue from the last checkpoint",
            file=log,
        )


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """With these variables; those that the launcher sets are gone afterwards too."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The launcher takes the signals and does not give them back. Until it does, one ends the start."""
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in SIGNALS if _is_heard(name)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_heard(name: str) -> bool:
    """Of a signal that whoever started us wants ignored, as nohup does: not."""
    return hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN


@contextmanager
def _stdout_is(stdout: IO[Any]) -> Iterator[None]:
    """The first process inherits descriptor 1, which a command points away from the real stdout."""
    stdout.flush()
    before = os.dup(1)
    os.dup2(stdout.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


@contextmanager
def _silent_launcher() -> Iterator[None]:
    """Its log says of every stop and failure what the error says again, in words for other people."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _visible(device: str) -> str:
    """cuda:2 as the environment names it, if the visible devices are renumbered already."""
    number = int(device.partition(":")[2] or 0)
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number] if number < len(names) else str(number)
