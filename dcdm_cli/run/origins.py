"""Where settings come from: files, presets, flags as layers that remember their origin. resolution.py merges them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.gate import parse_toml
from dcdm_cli.run.presets import PRESETS

DEFAULT = "default"  # origin of what nobody has said
# Settings that write outside the run folder, send to others, or let code from elsewhere run, with the value that does
# none of it.
FOREIGN: Mapping[str, Any] = {
    "caption.sidecars": None,
    "caption.metadata": None,
    "caption.overwrite": False,
    "finetune.log_with": None,
    "generate.trust_engine": False,
    "scale.engine": "local",
    "scale.address": None,
}


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


def toml_document(settings: Mapping[str, Any], origins: Mapping[str, str] | None = None, head: str = "") -> str:
    """Dotted keys and plain values as TOML that `file_layer` reads back; None is written "none", because TOML has no
    null. origins: comments behind the values that have one."""
    import tomlkit

    document = tomlkit.document()
    if head:
        document.add(tomlkit.comment(head))
    for dotted, value in sorted(settings.items(), key=lambda item: "." in item[0]):  # TOML wants top-level keys first
        section, _, name = dotted.rpartition(".")
        table: Any = document.setdefault(section, tomlkit.table()) if section else document
        item = tomlkit.item("none" if value is None else _inline(value) if isinstance(value, Mapping) else value)
        if origins is not None and dotted in origins:
            item.comment(origins[dotted])
        table.add(name, item)
    return "".join(_printable(character) for character in tomlkit.dumps(document))


def as_typed(value: Any) -> str:
    """A setting's plain value as --set KEY=VALUE takes it: text as it is, all else as TOML writes it."""
    return value if isinstance(value, str) else toml_document({"value": value}).partition("=")[2].strip().strip('"')


def _inline(value: Mapping[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.inline_table()
    table.update({key: _inline(inner) if isinstance(inner, Mapping) else inner for key, inner in value.items()})
    return table


def _printable(character: str) -> str:
    """Characters that do not print, such as bidi marks, as TOML writes them in strings."""
    number = ord(character)
    return character if character.isprintable() or character == "\n" else f"\\U{number:08X}"


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
        for name in names if isinstance(own, dict) else ():  # what is no table is refused later, by name
            if name in said and name not in own:
                own[name] = said[name]
                origins[f"{section}.{name}"] = f"as {leader}.{name}"


def file_layer(path: Path | None, *, required: bool) -> list[Layer]:
    """Nothing for a file that may be missing and is. Raises NotFoundError for one that must be there, UsageError for
    what cannot be read as settings: a link that leads nowhere would be settings that nobody misses."""
    if path is None or (not required and not os.path.lexists(path)):
        return []
    if not os.path.lexists(path):
        raise NotFoundError(f"no settings file {path}", "check the path given with --config", file=path)
    if not path.is_file():  # a folder, a pipe, or a link to what is gone
        said = "a link that leads to no file" if path.is_symlink() else "no file"
        raise UsageError(f"the settings {path} are {said}", "put a file there, or remove it", file=path)
    try:
        return [Layer(str(path), parse_toml(path.read_text("utf-8")))]
    except ValueError as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", "fix that line, or move the file aside", file=path
        ) from error


def preset_layer(name: str | None) -> Layer:
    if name is None:
        return Layer(DEFAULT, {})
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", nearest(name, sorted(PRESETS)))
    return Layer(f"preset {name}", {"preset": name, **PRESETS[name]})


def refuse_foreign(layer: Layer) -> None:
    """The settings file of a run folder may be somebody else's, like the folder: what writes elsewhere, or lets code
    from elsewhere run, must come from who starts the command. Raises UsageError naming key, value and flag."""
    for key, harmless in FOREIGN.items():
        section, name = key.split(".")
        table = layer.values.get(section)
        value = table.get(name, harmless) if isinstance(table, Mapping) else harmless
        if value in (harmless, "none"):
            continue
        flag = "--" + name.replace("_", "-")
        given = flag if value is True else f"{flag} {value}"
        raise UsageError(
            f"{key} = {value!r} ({layer.origin}): a run folder may come from somebody else, and so may not decide "
            "what is written outside it or whose code is run",
            f"take it out there, and give {given}, or name a file of your own that has it with --config",
            file=layer.origin,
        )
