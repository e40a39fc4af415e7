"""What this machine and installation can do: found by trying, one line each, to be pasted into a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dcdm_cli import __version__
from dcdm_cli.run.network import ask_hub, budget, within
from dcdm_cli.run.store import RunFolder

OK, NOTE, WARNING, FAULT = "ok", "note", "warning", "fault"
FEW_FILES, LITTLE_DISK, LITTLE_SHARED = 1024, 10 * 10**9, 256 * 2**20
HUB_SECONDS = 5.0
SLOW_SYNC_MS = 200.0
NAMED = ("torch", "diffusers", "transformers", "peft", "accelerate", "timm")


@dataclass(frozen=True)
class Finding:
    """state: ok, note (nothing to do), warning or fault. fix: what to do about it."""

    topic: str
    state: str
    text: str
    fix: str = ""


def run_doctor(run: RunFolder) -> list[Finding]:
    """Every finding, in the order in which they are read. Takes seconds: libraries are loaded and sessions opened."""
    parts = (versions, devices, backends, lambda: hub(min(HUB_SECONDS, budget())), lambda: file_system(run), limits)
    return [finding for part in parts for finding in part()]


def document(findings: list[Finding]) -> dict[str, Any]:
    return {"stage": "doctor", "ok": not any_fault(findings), "findings": [asdict(finding) for finding in findings]}


def any_fault(findings: list[Finding]) -> bool:
    return any(finding.state == FAULT for finding in findings)


def versions(distribution: str = "dcdm-cli") -> Iterator[Finding]:
    """The program's own, and every package that is older than what it needs."""
    yield Finding("dcdm", OK, f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    try:
        needed = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        fix = "pip install dcdm-cli"
        yield Finding("packages", WARNING, f"{distribution} is not installed as a package: floors are not known", fix)
        return
    old = list(outdated(needed))
    known = ", ".join(f"{name} {version}" for name in NAMED if (version := _version(name)))
    yield Finding("packages", OK, f"{known}; {len(old) or 'none'} of those needed below its floor")
    for requirement, version in old:
        found = f"{version} is there" if version else "it is not there"
        yield Finding("packages", FAULT, f"{requirement} is needed, {found}", f"pip install '{requirement}'")


def outdated(needed: list[str]) -> Iterator[tuple[str, str | None]]:
    """(requirement, version that is there) of those that are not met; extras are not asked for."""
    from packaging.requirements import Requirement

    for line in needed:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}", version


def devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", OK, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use, {_memory()}")
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)
    if torch.backends.mps.is_available():
        yield Finding("mps", OK, "an Apple GPU")
    elif not torch.cuda.device_count():
        built = torch.version.cuda
        text = "none in sight" + ("" if built else "; this torch is built for CPUs only")
        yield Finding("gpu", NOTE, text, "" if built else "for an NVIDIA GPU install torch with CUDA: pytorch.org")


def backends() -> Iterator[Finding]:
    from dcdm_cli.backends.sessions import try_backends

    for tried in try_backends():
        # the others may be missing: torch is what everything falls back on
        state = {True: OK, False: WARNING, None: NOTE}[tried.works]
        yield Finding(tried.backend, FAULT if tried.backend == "torch" and state != OK else state, tried.text)


def hub(seconds: float) -> Iterator[Finding]:
    """Reachable or not, within a time; whether there is a token, never which."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", NOTE, "not asked: HF_HUB_OFFLINE is set; only what is in the cache can be used")
    else:
        failure = within(seconds, lambda: ask_hub(seconds))
        fix = "models must then lie in the cache or be given as folders"
        yield (
            Finding("hub", WARNING, f"{constants.ENDPOINT}: {failure}", fix)
            if failure
            else Finding("hub", OK, f"{constants.ENDPOINT} answers")
        )
    token = get_token() is not None
    yield Finding("token", OK if token else NOTE, "there is one" if token else "none: gated models cannot be loaded")


def file_system(run: RunFolder) -> Iterator[Finding]:
    from dcdm_cli.run.file_system import probe_file_system
    from dcdm_cli.run.standing import sized

    found = probe_file_system(run.path)
    steps = ", ".join(f"{step} {ms:.1f} ms" for step, ms in found.ms.items())
    if found.failed:
        yield Finding("run folder", FAULT, f"{found.folder}: {found.failed}", "choose another folder with --run")
    else:
        slow = found.ms["fsync"] > SLOW_SYNC_MS
        fix = "network disks are slow at this: put the run folder on a local one" if slow else ""
        yield Finding("run folder", WARNING if slow else OK, f"{found.folder}: {steps}", fix)
    little = found.free < LITTLE_DISK
    yield Finding(
        "disk", WARNING if little else OK, f"{sized(found.free)} of {sized(found.total)} free",
        "Stable Diffusion alone takes 4 GB, a thousand 512 px PNG images 0.5 GB" if little else "",
    )  # fmt: skip


def limits() -> Iterator[Finding]:
    from dcdm_cli.run.file_system import open_file_limits
    from dcdm_cli.run.standing import sized

    soft, hard = open_file_limits()
    few = soft < FEW_FILES
    yield Finding("open files", WARNING if few else OK, f"{soft:,}", f"ulimit -n {min(hard, 65536)}" if few else "")
    # workers hand images over in it, and containers get little of it unless they are told
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = os.statvfs(shared)
        free = room.f_bavail * room.f_frsize
        little = free < LITTLE_SHARED
        fix = "docker run --shm-size 2g" if little else ""
        yield Finding("shared memory", WARNING if little else OK, f"{sized(free)} free in {shared}", fix)


def _gpu(index: int) -> Finding:
    import torch

    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        # by default torch counts older GPUs too, which only emulate it
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    text = f"{facts.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, bf16 {'yes' if bf16 else 'no'}"
    fix = "" if bf16 else "use --precision fp16 or fp32"
    return Finding(f"cuda:{index}", OK if bf16 else NOTE, f"{text}, capability {facts.major}.{facts.minor}", fix)


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / 2**30:.1f} GiB memory"
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return text
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    return text if free is None else f"{text}, {free / 2**20:.1f} free"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
