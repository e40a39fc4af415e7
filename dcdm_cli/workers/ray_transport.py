"""Workers as Ray actors, on any machine of a cluster. Ray is an extra; this file imports it when it is used.

A task is one streaming call of an actor. Ray tells us when an actor, its process or its machine is gone; the
coordinator then gives the task to another actor. Nothing here retries by itself.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dcdm_cli import __version__
from dcdm_cli.errors import CapabilityError, MismatchError, NotFoundError
from dcdm_cli.workers.devices import use_device
from dcdm_cli.workers.messages import Failure, Message, OpenWorker, failure_of

CONNECT_S = 5.0
AHEAD = 4  # things said that may wait to be heard; a worker that is further ahead waits


@dataclass(frozen=True)
class Cluster:
    """gpus: of all machines. nodes: alive and with a CPU, at least 1. cpus: of the smallest machine."""

    gpus: int
    nodes: int
    cpus: int


def connect(address: str | None) -> Cluster:
    """Joins the cluster at host:port, `auto` or ray://host:port; None starts one on this machine.

    Raises CapabilityError without Ray, NotFoundError when nobody answers there.
    """
    ray = _import_ray()
    _check_reachable(address)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "ignore_reinit_error": True}
    try:
        ray.init(address=address, **quiet) if address else ray.init(include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise NotFoundError(
            f"no Ray cluster at {address or 'this machine'}: {error}",
            "start one with: ray start --head, and give its address with --address HOST:6379",
        ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    return Cluster(int(sum(node.get("GPU", 0) for node in nodes)), max(1, len(cpus)), min(cpus, default=1))


def disconnect() -> None:
    _import_ray().shutdown()


class RayTransport:
    """resources: what one worker takes, as Ray's options: num_gpus, num_cpus. Needs `connect` first."""

    def __init__(self, open_worker: OpenWorker, device: str, slots: int, resources: dict[str, float]) -> None:
        self.ray, self.device, self.slots, self.resources = _import_ray(), device, slots, resources
        self.opener = self.ray.put(open_worker)  # once, however many actors read it
        self.kind = self.ray.remote(_Actor)
        self._actors: dict[int, Any] = {}
        self._opening: dict[int, Any] = {}  # slot -> reference to what the actor says when it is open
        self._streams: dict[int, Any] = {}

    def start(self, slot: int) -> None:
        """May wait for room in the cluster; the others work meanwhile."""
        # no retries, which are the coordinator's; two calls at once, so that `stop` is heard while `run` is at work
        options = {**self.resources, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
        self._actors[slot] = self.kind.options(**options).remote(self.opener, self.device, __version__)
        self._opening[slot] = self._actors[slot].open.remote()

    def give(self, slot: int, task: Any) -> None:
        how = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
        self._streams[slot] = self._actors[slot].run.options(**how).remote(task)

    def hear(self, timeout_s: float) -> list[Message]:
        waiting = [*self._opening.items(), *self._streams.items()]
        slots = {reference: slot for slot, reference in waiting}
        if not slots:
            return []
        ready, _ = self.ray.wait(list(slots), num_returns=1, timeout=timeout_s, fetch_local=False)
        return [self._read(slots[reference], reference) for reference in ready]

    def ask_to_stop(self) -> None:
        for slot in self._streams:
            self._actors[slot].stop.remote()

    def close(self) -> None:
        for actor in self._actors.values():
            self.ray.kill(actor)
        self._actors, self._opening, self._streams = {}, {}, {}

    def _read(self, slot: int, reference: Any) -> Message:
        opening = slot in self._opening
        try:
            kind, value = self.ray.get(reference if opening else next(reference))
        except (self.ray.exceptions.RayError, StopIteration) as error:
            return self._lost(slot, type(error).__name__)
        if opening:
            del self._opening[slot]
        elif kind in ("end", "failed"):
            del self._streams[slot]
        return Message(slot, kind, value)

    def _lost(self, slot: int, how: str) -> Message:
        self._opening.pop(slot, None)
        self._streams.pop(slot, None)
        self.ray.kill(self._actors.pop(slot))
        return Message(slot, "died", how)


class _Actor:
    """What runs on the other machine. Failures travel as text: exceptions of ours do not survive Ray's wrapping."""

    def __init__(self, open_worker: OpenWorker, device: str, version: str) -> None:
        self.asked, self.worker = False, None
        self.said = _opened(open_worker, device, version, lambda: self.asked)
        if not isinstance(self.said, Failure):
            self.worker = self.said

    def open(self) -> tuple[str, Any]:
        return ("open", self.worker.hello) if self.worker is not None else ("failed", self.said)

    def run(self, task: Any) -> Iterator[tuple[str, Any]]:
        assert self.worker is not None
        try:
            for value in self.worker.run(task):
                yield "said", value
        except BaseException as error:
            yield "failed", failure_of(error)
        else:
            yield "end", None

    def stop(self) -> None:
        self.asked = True


def _opened(open_worker: OpenWorker, device: str, version: str, should_stop: Callable[[], bool]) -> Any:
    """A worker, or the `Failure` that kept it from opening."""
    try:
        if version != __version__:
            raise MismatchError(
                f"{socket.gethostname()} has dcdm {__version__}, this process {version}",
                "install the same version on every machine of the cluster",
            )
        use_device(device)
        return open_worker(device, should_stop)
    except BaseException as error:
        return failure_of(error)


def _import_ray() -> Any:
    # No reports to the makers of Ray, and no change of CUDA_VISIBLE_DEVICES for workers without a GPU.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise CapabilityError(
            "--engine ray needs Ray, which is not installed", "pip install 'dcdm-cli[ray]' on every machine"
        ) from error
    return ray


def _check_reachable(address: str | None) -> None:
    """Ray itself tries an address that does not answer for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    # `auto` or none: Ray itself knows where
    if not colon:
        return
    try:
        # IPv6 hosts stand in brackets, which only the text of an address has
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            return
    except (OSError, ValueError, OverflowError) as error:
        raise NotFoundError(
            f"no Ray cluster answers at {address}: {error}",
            "check the address and the firewall; on the head machine run: ray start --head --port 6379",
        ) from error
