"""The coordinator: hands out tasks one by one, hears the workers, and gives a dead worker's task to another.

A task is handed out again after a death, so it may be done twice; whoever publishes results has to expect that.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol, TypeVar

from dcdm_cli.errors import DcdmError
from dcdm_cli.run.progress import Job
from dcdm_cli.workers.messages import Failure, Message

MAX_DEATHS = 5  # in a row on one task without it coming further, or of one worker that never opens
STOP_S = 120.0  # what workers get to finish their batch after a stop
POLL_S = 0.25
Task = TypeVar("Task", bound=Hashable)


class Transport(Protocol):
    """Where workers live. slots: how many there may be at once."""

    slots: int

    def start(self, slot: int) -> None:
        """Starts a worker (again); it says `open` when it is ready."""
        ...

    def give(self, slot: int, task: Any) -> None: ...

    def hear(self, timeout_s: float) -> list[Message]:
        """What has been said since; waits up to the time for the first word."""
        ...

    def ask_to_stop(self) -> None:
        """Busy workers end their task at the next batch; idle ones leave."""
        ...

    def close(self) -> None:
        """Ends every worker at once."""
        ...


class WorkerPool:
    """Workers of one transport, as a context manager; leaving it ends them."""

    def __init__(self, transport: Transport, job: Job) -> None:
        self.transport, self.job = transport, job
        self.hellos: dict[int, Any] = {}
        self.idle: list[int] = []
        self.opening: dict[int, int] = {}  # slot -> deaths before it opened

    def __enter__(self) -> WorkerPool:
        try:
            for slot in range(self.transport.slots):
                self._start(slot)
        except BaseException:  # Python calls no `__exit__` where entering fails
            self.transport.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.transport.close()

    def first_hello(self) -> Any:
        """What the first worker that is open says of itself. Raises what kept workers from opening."""
        while not self.hellos:
            for message in self.transport.hear(POLL_S):
                self._hear_idle(message)
            self.job.stop_if_asked("nothing was started")
        return next(iter(self.hellos.values()))

    def work(
        self,
        tasks: Iterable[Task],
        order: Callable[[Task], Any],
        said: Callable[[Task, Any], int],
        saved: Callable[[], str],
    ) -> None:
        """Has every task done, in about the given order.

        order: task -> what a worker is given, asked again when it is given again. said: told what a worker said of a
        task; returns how far the task is, which only grows while a worker gets on. saved: for the message of a stop.
        Raises what a worker raised, InterruptedRunError when asked to stop, DcdmError for a task that ends workers.
        """
        rounds = _Round(self, deque(tasks), order, said)
        try:
            while rounds.busy or rounds.waiting:
                rounds.hand_out()
                for message in self.transport.hear(POLL_S):
                    rounds.hear(message)
                if self.job.stop_signal() is not None:
                    break
        except DcdmError:
            rounds.wind_up()  # the others save what they have
            raise
        # else a stop came with the last word, and there is nothing left to stop
        if rounds.busy or rounds.waiting:
            rounds.wind_up()
            self.job.stop_if_asked(saved())

    def _start(self, slot: int) -> None:
        self.opening.setdefault(slot, 0)
        self.transport.start(slot)

    def _hear_idle(self, message: Message) -> None:
        """A word from a worker that has no task."""
        if message.kind == "open":
            self.hellos[message.slot] = message.value
            self.opening.pop(message.slot, None)
            self.idle.append(message.slot)
        elif message.kind == "failed":
            raise raised(message.value)
        elif message.kind == "died":
            self.restart(message)

    def restart(self, message: Message) -> None:
        slot = message.slot
        if slot in self.idle:
            self.idle.remove(slot)
        # who dies at work is counted with its task, see `_bury`
        deaths = self.opening.get(slot, 0) + (slot in self.opening)
        if deaths >= MAX_DEATHS:
            raise DcdmError(
                f"worker {slot} ended {deaths} times before it was ready ({message.value})",
                "use fewer --devices, or run without --devices to see why",
            )
        self.opening[slot] = deaths
        self.transport.start(slot)


class _Round:
    """One call of `WorkerPool.work`."""

    def __init__(
        self, pool: WorkerPool, waiting: deque[Any], order: Callable[[Any], Any], said: Callable[[Any, Any], int]
    ) -> None:
        self.pool, self.waiting, self.order, self.said = pool, waiting, order, said
        self.busy: dict[int, Any] = {}  # slot -> task
        self.furthest: dict[Any, int] = {}
        self.deaths: dict[Any, int] = {}

    def hand_out(self) -> None:
        while self.waiting and self.pool.idle:
            slot, task = self.pool.idle.pop(0), self.waiting.popleft()
            self.busy[slot] = task
            self.pool.transport.give(slot, self.order(task))

    def hear(self, message: Message) -> None:
        if message.slot not in self.busy:
            self.pool._hear_idle(message)
            return
        task = self.busy[message.slot]
        if message.kind == "said":
            place = self.said(task, message.value)
            # further than ever: the deaths on the way there were not the task's fault
            if place > self.furthest.get(task, 0):
                self.furthest[task], self.deaths[task] = place, 0
        elif message.kind == "end":
            del self.busy[message.slot]
            self.pool.idle.append(message.slot)
        elif message.kind == "failed":
            del self.busy[message.slot]
            raise raised(message.value)
        elif message.kind == "died":
            self._bury(message, task)

    def wind_up(self) -> None:
        """Lets busy workers finish their batch; their last words count."""
        self.pool.transport.ask_to_stop()
        deadline = time.monotonic() + STOP_S
        while self.busy and time.monotonic() < deadline:
            for message in self.pool.transport.hear(POLL_S):
                if message.kind in ("end", "died", "failed"):
                    self.busy.pop(message.slot, None)
                elif message.kind == "said" and message.slot in self.busy:
                    self.said(self.busy[message.slot], message.value)

    def _bury(self, message: Message, task: Any) -> None:
        del self.busy[message.slot]
        self.deaths[task] = self.deaths.get(task, 0) + 1
        if self.deaths[task] >= MAX_DEATHS:
            raise DcdmError(
                f"{task} ended its worker {self.deaths[task]} times in a row ({message.value})",
                "use a smaller --batch-size or fewer --devices; everything finished is kept",
            )
        self.waiting.appendleft(task)
        self.pool.restart(message)


def raised(failure: Failure) -> DcdmError:
    """The worker's error on this side; with DCDM_DEBUG its traceback is shown."""
    if failure.trace and os.environ.get("DCDM_DEBUG"):
        sys.stderr.write(failure.trace)
    return failure.error()
