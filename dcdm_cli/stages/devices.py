"""Which devices a command uses, and the crew that works on them."""

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
    from dcdm_cli.crew.coordinator import Crew
    from dcdm_cli.crew.messages import OpenWorker
    from dcdm_cli.difficulty.feature_cache import FeatureCache, OpenCrew
    from dcdm_cli.run.session import Session


@dataclass(frozen=True)
class Spread:
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


def settle_spread(session: Session) -> Spread:
    """What `--devices`, `--engine` and `--address` ask for; joins the Ray cluster.

    Raises CapabilityError for more GPUs than there are, UsageError for what is neither a number nor a device.
    """
    config = session.config.scale
    if config.engine == "ray":
        return _on_ray(session)
    if config.address:
        raise UsageError("--address names a Ray cluster", "add --engine ray")
    devices = _local_devices(session)
    return Spread(devices, threads=session.config.threads or _cpu_share(devices))


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
    records = () if session.force else map(session.run.record, stages)
    known = next((r.config["precision"] for r in records if r and "precision" in r.config), None)
    if known is None:
        from dcdm_cli.crew.devices import settle_device
        from dcdm_cli.run.precision import settle_precision

        device, _ = settle_device(session.config.device)
        known = settle_precision("auto", device, training=section == "finetune")
    return session.with_settings(**{section: {"precision": known}})


def _cpu_share(devices: list[str]) -> int | None:
    """Threads of each of the workers that compute on the CPU."""
    on_cpu = sum(device == "cpu" for device in devices)
    cores = os.environ.get("OMP_NUM_THREADS", "")
    total = int(cores) if cores.isdecimal() else len(os.sched_getaffinity(0))
    return max(1, total // on_cpu) if on_cpu else None


def open_crew(session: Session, open_worker: OpenWorker, spread: Spread, job: Job) -> Crew:
    from dcdm_cli.crew.coordinator import Crew
    from dcdm_cli.crew.local import LocalTransport
    from dcdm_cli.crew.ray_crew import RayTransport

    if spread.engine == "ray":
        session.console.note(f"devices: {len(spread.devices)} x {spread.devices[0]} on Ray")
        return Crew(RayTransport(open_worker, spread.devices[0], len(spread.devices), spread.resources), job)
    session.console.note(f"devices: {', '.join(spread.devices)} (one process each)")
    return Crew(LocalTransport(open_worker, spread.devices, spread.threads), job)


def crew_of(session: Session, spread: Spread, job: Job) -> OpenCrew | None:
    """Opens the crew when there is work for it; None = the command does the work itself. Its workers decode images as
    the command does."""
    from dcdm_cli.data.images import decode_options, decoding_so

    if not spread:
        return None
    return lambda open_worker: open_crew(session, partial(decoding_so, decode_options(), open_worker), spread, job)


def run_features(session: Session, job: Job, spread: Spread | None = None) -> FeatureCache:
    """What is kept of the run's images as networks see them; what is not there yet is computed by the command's
    devices. spread: those, None = they are not settled yet."""
    from dcdm_cli.difficulty.feature_cache import FeatureCache

    spread = settle_spread(session) if spread is None else spread
    return FeatureCache(session.run.cache / "features", crew_of(session, spread, job), spread.threads)


def _on_ray(session: Session) -> Spread:
    from dcdm_cli.crew.ray_crew import connect

    config = session.config.scale
    cluster = connect(config.address)
    gpu = cluster.gpus > 0 and session.config.device in ("auto", "cuda")
    wanted = list(config.devices)
    if wanted and not (len(wanted) == 1 and (wanted[0].isdecimal() or wanted[0] == "all")):
        raise UsageError("on Ray, --devices is a number or all", "Ray picks the machines and their devices")
    count = int(wanted[0]) if wanted and wanted[0] != "all" else cluster.gpus if gpu else cluster.nodes
    if count < 1 or (gpu and count > cluster.gpus):
        raise CapabilityError(f"--devices {count}: the cluster has {cluster.gpus} GPUs", "use --devices all")
    threads = session.config.threads or (None if gpu else cluster.cpus if not wanted else 1)
    resources = {"num_gpus": 1.0, "num_cpus": 1.0} if gpu else {"num_cpus": float(threads or 1)}
    return Spread(["cuda" if gpu else "cpu"] * count, "ray", config.results == "driver", threads, resources)


def _local_devices(session: Session) -> list[str]:
    from dcdm_cli.crew.devices import count_devices, settle_device

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
    return [f"{kind}:{index}" for index in range(count)] if kind == "cuda" else [kind]


def _existing(device: str) -> str:
    """One name of several; which of them is current is each worker's business."""
    from dcdm_cli.crew.devices import check_device

    check_device(device)
    return device
