"""Opening a run for a command: flags or keyword arguments in, the session that the command's stages work with out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcdm_cli.console import Console
from dcdm_cli.errors import UsageError
from dcdm_cli.run import network
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.resolution import Resolved, known_keys, listed, renamed, resolve
from dcdm_cli.run.session import Session, overridden_text, recorded_layers
from dcdm_cli.run.store import RunFolder

# Verb -> the sections whose settings it takes under their own names; a name in two of them is the first one's.
SECTIONS: dict[str, tuple[str, ...]] = {
    "score": ("score", "data", "scale"),
    "caption": ("caption",),
    "finetune": ("finetune",),
    "distill": ("distill",),
    "export": ("export",),
    "generate": ("generate", "scale"),
    "evaluate": ("evaluate", "scale"),
}
GENERAL = ("preset", "device", "threads", "seed")  # settings of every verb


def open_session(
    folder: Path,
    command: str,
    flags: Mapping[str, Any],
    console: Console,
    *,
    config_file: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    name: str = "",
) -> Session:
    """Settings as `command` sees them: flags (dotted key -> value) over the records of the stages before it, and so on
    down to the defaults. Raises UsageError for unknown keys and values that break a rule."""
    flags = {renamed(key): value for key, value in flags.items()}
    run = RunFolder(folder, name)
    resolved = resolve_for(command, run, console, flags, config_file)
    for hint in resolved.renamed:
        console.warn(hint)
    _use_threads(resolved.config.threads)
    # by the environment: worker processes inherit it
    os.environ[network.SECONDS] = str(resolved.config.network_seconds)
    return Session(run, resolved, console, force, dry_run, flags, config_file)


def resolve_for(
    command: str, run: RunFolder, console: Console, flags: Mapping[str, Any], config_file: Path | None
) -> Resolved:
    """The settings as `command` sees them; warns of what records decide against files and the environment."""
    recorded = recorded_layers(run, command)
    resolved = resolve(flags=flags, config_file=config_file, run_file=run.config_file, recorded=recorded)
    if said := overridden_text(resolved.overridden, run, config_file):
        console.warn(said)
    return resolved


def run_of_plan(*, plan_file: Path | None, **_: object) -> Path | None:
    """The run in whose `plans` folder the plan lies."""
    folder = plan_file.absolute().parent if plan_file else None
    return folder.parent if folder and RunFolder(folder.parent).plans == folder else None


def dotted(settings: Mapping[str, Any], command: str = "") -> dict[str, Any]:
    """Keyword arguments as dotted keys. None says `none`: an optional setting that is switched off.

    A name is a general setting, one of the command's own, a dotted key, or a section with its settings as a mapping:
    `steps=3`, `**{"generate.steps": 3}`, `generate={"steps": 3}`; lists may be written as in flags, `devices="0,1"`.
    Raises UsageError for any other.
    """
    flags: dict[str, Any] = {}
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    for name, value in settings.items():
        if isinstance(value, Mapping) and name in sections:
            flags |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flags[_key(name, command)] = value
    known = {*known_keys()}
    # an unknown key of a section is refused by `resolve`, which names its place
    written = {key: listed(key, value) if key in known else value for key, value in flags.items()}
    return {key: "none" if value is None else value for key, value in written.items()}


def _key(name: str, command: str) -> str:
    own = [f"{section}.{name}" for section in SECTIONS.get(command, ())]
    known = known_keys()
    key = next((key for key in (name, *own) if key in known), None)
    if key is None:
        raise UsageError(f"unknown setting {name!r}" + (f" of {command}" if command else ""), _meant(name, command))
    return key


def _meant(name: str, command: str) -> str:
    """The nearest of the command's settings; without a command, the stages that have a setting of this name."""
    known = known_keys()
    offered = [key.partition(".")[2] for key in known if key.partition(".")[0] in SECTIONS.get(command, ())]
    stages = [key.partition(".")[0] for key in known if key.partition(".")[2] == name]
    if offered or not stages:
        return nearest(name, [*GENERAL, *(offered or known)])
    return "say of which stage: " + " or ".join(f"{stage}={{{name!r}: ...}}" for stage in stages)


def _use_threads(count: int | None) -> None:
    if not count:
        return
    os.environ["OMP_NUM_THREADS"] = str(count)  # read when torch is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
