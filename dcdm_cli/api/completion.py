"""What a shell is offered after an option: choices, presets, run folders, generated sets, experiments, settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dcdm_cli.run.presets import PRESETS
from dcdm_cli.run.store import DEFAULT_RUN, RunFolder

Completer = Callable[[str], list[str]]
MARKS = ("dcdm.toml", "records", "samples.parquet")  # any of them makes a folder a run folder


def choices(words: Sequence[str]) -> Completer:
    """Those that begin with what has been typed."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def presets(incomplete: str) -> list[str]:
    return choices(sorted(PRESETS))(incomplete)


def devices(incomplete: str) -> list[str]:
    return choices(("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps"))(incomplete)


def runs(incomplete: str) -> list[str]:
    """Run folders below what has been typed; folders that may hold some, where there are none."""
    folders = _folders(incomplete)
    found = [name for name, path in folders if any((path / mark).exists() for mark in MARKS)]
    return found or [f"{name}/" for name, _ in folders]


def set_names(incomplete: str) -> list[str]:
    """Of all run folders here: which one is meant stands elsewhere on the line."""
    here = [RunFolder(Path(name)) for name in {DEFAULT_RUN, *runs("")}]
    return choices(sorted({name for run in here for name in run.set_names()}))(incomplete)


def experiments(incomplete: str) -> list[str]:
    """Built-in ones by name, and TOML files here."""
    import dcdm_cli

    folder = Path(dcdm_cli.__file__).parent / "evaluation" / "builtin"  # not imported: that takes a second
    names = sorted(file.stem for file in folder.glob("*.toml"))
    return choices([*names, *sorted(file.name for file in Path().glob("*.toml"))])(incomplete)


def setting_keys(incomplete: str) -> list[str]:
    from dcdm_cli.run.resolution import known_keys

    return choices([f"{key}=" for key in known_keys()])(incomplete)


def _folders(incomplete: str) -> list[tuple[str, Path]]:
    """(as it is written, path) of folders that begin with what has been typed."""
    head, _, tail = incomplete.rpartition("/")
    where = Path(f"{head}/") if incomplete.startswith("/") or head else Path()
    try:
        found = [path for path in sorted(where.iterdir()) if path.is_dir() and path.name.startswith(tail)]
    except OSError:
        return []
    shown = [path for path in found if tail.startswith(".") or not path.name.startswith(".")]
    return [(f"{head}/{path.name}" if "/" in incomplete else path.name, path) for path in shown]
