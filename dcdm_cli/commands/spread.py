"""Which devices a command uses, and the crew that works on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dcdm_cli.errors import CapabilityError, UsageError
from dcdm_cli.job import Job

if TYPE_CHECKING:
    from dcdm_cli.commands.options import Context
    from dcdm_cli.crew.boss import Crew
    from dcdm_cli.crew.messages import OpenWorker


def crew_devices(context: Context) -> list[str]:
    """Devices of `--devices`, one worker each; empty when the command is to do the work itself.

    Raises CapabilityError for more GPUs than there are, UsageError for what is neither a number nor a device.
    """
    wanted = list(context.config.scale.devices)
    if not wanted:
        return []
    from dcdm_cli.backends.base import settle_device

    if len(wanted) > 1 or not (wanted[0].isdecimal() or wanted[0] == "all"):
        return [_existing(device, settle_device) for device in wanted]
    kind, _ = settle_device(context.config.device)
    kind = kind.split(":")[0]
    count = _present(kind) if wanted[0] == "all" else int(wanted[0])
    if count < 1:
        raise UsageError("--devices 0 leaves nobody to do the work", "give 1 or more, or leave it out")
    if kind == "cpu":
        return ["cpu"] * count
    if count > _present(kind):
        raise CapabilityError(
            f"--devices {count}: there are {_present(kind)} {kind} devices here",
            "use --devices all, or --device cpu --devices N",
        )
    return [f"{kind}:{index}" for index in range(count)] if kind == "cuda" else [kind]


def threads_per_worker(context: Context, devices: Sequence[str]) -> int | None:
    """CPU threads of each worker: `--threads`, or an even share of the cores where the workers compute on the CPU."""
    if context.config.threads:
        return context.config.threads
    on_cpu = sum(device == "cpu" for device in devices)
    return max(1, len(os.sched_getaffinity(0)) // on_cpu) if on_cpu else None


def open_crew(context: Context, open_worker: OpenWorker, devices: Sequence[str], job: Job) -> Crew:
    """Workers on this machine."""
    from dcdm_cli.crew.boss import Crew
    from dcdm_cli.crew.local import LocalTransport

    context.console.note(f"devices: {', '.join(devices)} (one process each)")
    return Crew(LocalTransport(open_worker, devices, threads_per_worker(context, devices)), job)


def _existing(device: str, settle: Callable[[str], tuple[str, str]]) -> str:
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise UsageError(f"--devices {device!r} is no device", "give a number, all, or names such as cuda:0,cuda:1")
    settled, _ = settle(device)
    if kind == "cuda" and int(index or 0) >= _present(kind):
        raise CapabilityError(f"--devices {device}: there are {_present(kind)} GPUs here", "use --devices all")
    return settled


def _present(kind: str) -> int:
    if kind != "cuda":
        return 1
    import torch

    return torch.cuda.device_count()
