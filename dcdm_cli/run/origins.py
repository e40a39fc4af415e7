"""Where settings come from: files, presets and flags as layers that remember their origin. config.py merges them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.run.presets import PRESETS


@dataclass(frozen=True)
class Layer:
    """Settings from one place. origin: what `dcdm config show --origin` prints."""

    origin: str
    values: Mapping[str, Any]


def nearest(word: str, choices: list[str]) -> str:
    """'did you mean …' or the list of choices when nothing is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(choices)}"


def split_list(text: str) -> list[str]:
    """How lists are written outside TOML: with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def follow(
    merged: dict[str, Any], origins: dict[str, str], leader: str, followers: Sequence[str], names: Sequence[str]
) -> None:
    """Settings of `followers` that nobody has said are those said of `leader`, as far as there are any.

    For classifiers: a scorer of 64 pixels is not to be followed by hours of judge and downstream at 224.
    """
    said = merged.get(leader)
    if not isinstance(said, dict):
        return
    for section in followers:
        own = merged.setdefault(section, {})
        for name in names if isinstance(own, dict) else ():
            if name in said and name not in own:
                own[name] = said[name]
                origins[f"{section}.{name}"] = f"as {leader}.{name}"


def file_layer(path: Path | None, *, required: bool) -> list[Layer]:
    if path is None or (not required and not path.is_file()):
        return []
    if not path.is_file():
        raise NotFoundError(f"no settings file {path}", "check the path given with --config", file=path)
    try:
        return [Layer(str(path), tomllib.loads(path.read_text("utf-8")))]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", "fix that line, or move the file aside", file=path
        ) from error


def preset_layer(name: str | None) -> Layer:
    if name is None:
        return Layer("default", {})
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", nearest(name, sorted(PRESETS)))
    return Layer(f"preset {name}", {"preset": name, **PRESETS[name]})
