"""Which devices a command uses, and the worker pool that works on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dcdm_cli.errors import CapabilityError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.stages.best_target import with_best_target

if TYPE_CHECKING:
    from dcdm_cli.difficulty.feature_cache import FeatureCache, OpenPool
    from dcdm_cli.run.session import Session
    from dcdm_cli.workers.coordinator import WorkerPool
    from dcdm_cli.workers.messages import OpenWorker


@dataclass(frozen=True)
class Placement:
    """devices: one worker each; none = the command does the work itself. deliver: workers send images to this process.

    threads: CPU threads of one worker, None = the libraries' choice. resources: of a Ray worker.
    """

    devices: list[str]
    engine: str = "local"
    deliver: bool = False
    threads: int | None = None
    resources: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.devices)


def settle_placement(session: Session) -> Placement:
    """What `--devices`, `--engine` and `--address` ask for; joins the Ray cluster.

    Raises CapabilityError for more GPUs than there are, UsageError for what is neither a number nor a device.
    """
    config = session.config.scale
    if config.engine == "ray":
        return _on_ray(session)
    if config.address:
        raise UsageError("--address names a Ray cluster", "add --engine ray")
    devices = _local_devices(session)
    return Placement(devices, threads=session.config.threads or _cpu_share(devices))


def settle_generation(session: Session, *stages: str) -> Session:
    """`generate.precision` as one of the three: `auto` is what the first of `stages` that is recorded was done with,
    unless --force makes it anew, else what suits the device. `generate.difficulty = best` as what it stands for."""
    return _with_precision(with_best_target(session), "generate", stages)


def settle_training(session: Session) -> Session:
    """The same for `finetune.precision`."""
    return _with_precision(session, "finetune", ("finetune",))


def _with_precision(session: Session, section: str, stages: Sequence[str]) -> Session:
    if getattr(session.config, section).precision != "auto":
        return session
    # what was made decides: on another device another precision would make a finished stage stale
    records = () if session.force else map(session.run.record, stages)
    known = next((r.config["precision"] for r in records if r and "precision" in r.config), None)
    if known is None:
        from dcdm_cli.run.precision import settle_precision
        from dcdm_cli.workers.devices import settle_device

        device, _ = settle_device(session.config.device)
        known = settle_precision("auto", device, training=section == "finetune")
    return session.with_settings(**{section: {"precision": known}})


def _cpu_share(devices: list[str]) -> int | None:
    """Threads of each of the workers that compute on the CPU."""
    on_cpu = sum(device == "cpu" for device in devices)
    cores = os.environ.get("OMP_NUM_THREADS", "")
    # cores that this process may use, which in a container are not all of the machine's
    total = int(cores) if cores.isdecimal() else len(os.sched_getaffinity(0))
    return max(1, total // on_cpu) if on_cpu else None


def open_pool(session: Session, open_worker: OpenWorker, placement: Placement, job: Job) -> WorkerPool:
    from dcdm_cli.workers.coordinator import WorkerPool
    from dcdm_cli.workers.local import LocalTransport
    from dcdm_cli.workers.ray_transport import RayTransport

    if placement.engine == "ray":
        session.console.note(f"devices: {len(placement.devices)} x {placement.devices[0]} on Ray")
        return WorkerPool(
            RayTransport(open_worker, placement.devices[0], len(placement.devices), placement.resources), job
        )
    session.console.note(f"devices: {', '.join(placement.devices)} (one process each)")
    return WorkerPool(LocalTransport(open_worker, placement.devices, placement.threads), job)


def pool_of(session: Session, placement: Placement, job: Job) -> OpenPool | None:
    """Opens the pool when there is work for it; None = the command does the work itself. Its workers decode images as
    the command does."""
    from dcdm_cli.data.images import decode_options, decoding_so

    if not placement:
        return None
    return lambda open_worker: open_pool(session, partial(decoding_so, decode_options(), open_worker), placement, job)


def run_features(session: Session, job: Job, placement: Placement | None = None) -> FeatureCache:
    """What is kept of the run's images as networks see them; what is not there yet is computed by the command's
    devices. placement: those, None = they are not settled yet."""
    from dcdm_cli.difficulty.feature_cache import FeatureCache

    placement = settle_placement(session) if placement is None else placement
    return FeatureCache(session.run.cache / "features", pool_of(session, placement, job), placement.threads)


def _on_ray(session: Session) -> Placement:
    from dcdm_cli.workers.ray_transport import connect

    config = session.config.scale
    cluster = connect(config.address)
    gpu = cluster.gpus > 0 and session.config.device in ("auto", "cuda")
    wanted = list(config.devices)
    if wanted and not (len(wanted) == 1 and (wanted[0].isdecimal() or wanted[0] == "all")):
        raise UsageError("on Ray, --devices is a number or all", "Ray picks the machines and their devices")
    count = int(wanted[0]) if wanted and wanted[0] != "all" else cluster.gpus if gpu else cluster.nodes
    if count < 1 or (gpu and count > cluster.gpus):
        raise CapabilityError(f"--devices {count}: the cluster has {cluster.gpus} GPUs", "use --devices all")
    whole = not wanted or wanted[0] == "all"  # one worker per machine has all its cores
    threads = session.config.threads or (None if gpu else cluster.cpus if whole else 1)
    resources = {"num_gpus": 1.0, "num_cpus": 1.0} if gpu else {"num_cpus": float(threads or 1)}
    return Placement(["cuda" if gpu else "cpu"] * count, "ray", config.results == "driver", threads, resources)


def _local_devices(session: Session) -> list[str]:
    from dcdm_cli.workers.devices import count_devices, settle_device

    wanted = list(session.config.scale.devices)
    if not wanted:
        return []
    if len(wanted) > 1 or not (wanted[0].isdecimal() or wanted[0] == "all"):
        return [_existing(device) for device in wanted]
    kind = settle_device(session.config.device)[0].split(":")[0]
    count = count_devices(kind) if wanted[0] == "all" else int(wanted[0])
    if count < 1:
        raise UsageError("--devices 0 leaves nobody to do the work", "give 1 or more, or leave it out")
    if kind == "cpu":
        return ["cpu"] * count
    if count > count_devices(kind):
        raise CapabilityError(
            f"--devices {count}: there are {count_devices(kind)} {kind} devices here",
            "use --devices all, or --device cpu --devices N",
        )
    # mps is one device, without a number
    return [f"{kind}:{index}" for index in range(count)] if kind == "cuda" else [kind]


def _existing(device: str) -> str:
    """One name of several; which of them is current is each worker's business."""
    from dcdm_cli.workers.devices import check_device

    check_device(device)
    return device
