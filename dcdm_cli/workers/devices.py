"""Devices by name: which one a run uses, and making it the one that everything in this process uses.

A number that is only passed on is not enough: CUDA graphs, streams, random generators, TensorRT and ONNX Runtime take
the *current* GPU, which is number 0 until someone says otherwise. So whoever settles on a device for work in this
process calls `use_device`: the command itself, each worker, each rank.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

from dcdm_cli.errors import CapabilityError, UsageError

_NAME = re.compile(r"(cpu|mps|cuda)(?::(\d+))?")
NAMES = "auto, cpu, cuda, mps, or one GPU by its number: cuda:1"


def settle_device(requested: str) -> tuple[str, str]:
    """The device to run on and why. It is not made current: see `use_device`.

    Raises UsageError for what is no device's name, CapabilityError when the device is not there.
    """
    import torch

    if requested != "auto":
        check_device(requested)
        return requested, "as requested"
    if torch.cuda.is_available():
        return "cuda", "a CUDA GPU is present"
    if torch.backends.mps.is_available():
        return "mps", "an Apple GPU is present"
    return "cpu", "no GPU is present"


def check_device(name: str) -> None:
    """Raises UsageError for what is no device's name, CapabilityError when the device is not there."""
    import torch

    kind, number = split_name(name)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[kind]:
        raise CapabilityError(f"device {name!r} is not available here", "use --device auto or --device cpu")
    count = count_devices(kind)
    if (number or 0) >= count:
        names = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise CapabilityError(
            f"device {name!r} is not there: this process sees {count} {kind} device{'s' * (count != 1)}",
            f"use {names if kind == 'cuda' else kind}, or --device auto"
            + (" (CUDA_VISIBLE_DEVICES says which ones it sees)" if kind == "cuda" else ""),
        )


def split_name(name: str) -> tuple[str, int | None]:
    """Kind and number of a device; None = the current one. Raises UsageError for what is no device's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"{name!r} is no device", f"give {NAMES}")
    return found[1], None if found[2] is None else int(found[2])


def count_devices(kind: str) -> int:
    """How many of a kind this process sees; CPU and Apple GPU count once."""
    if kind != "cuda":
        return 1
    import torch

    return torch.cuda.device_count()


def use_device(name: str) -> None:
    """Makes a numbered GPU this process's current one; other names change nothing. Raises as `check_device` does."""
    kind, _, number = name.partition(":")
    if kind != "cuda" or not number:
        return
    import torch

    check_device(name)
    torch.cuda.set_device(name)


def on_device(name: str) -> AbstractContextManager[object]:
    """The same for a block of code, for what may run in a thread or beside work on another GPU."""
    if not name.startswith("cuda"):
        return nullcontext()
    import torch

    return torch.cuda.device(name)
