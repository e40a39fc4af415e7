"""The most memory that a stage has held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_memory_mib() -> int:
    """Resident memory of this process, or the GPU's peak when one was used."""
    torch = sys.modules.get("torch")  # not imported for this
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    return resident_peak_mib()


def resident_peak_mib() -> int:
    """The most memory that this process has held. Linux's own mark where there is one: `getrusage` also counts what the
    process held that started this one, before it became this program."""
    status = Path("/proc/self/status")
    marks = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text("ascii") if status.is_file() else "", re.MULTILINE)
    if marks:
        return int(marks[0]) // 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)
