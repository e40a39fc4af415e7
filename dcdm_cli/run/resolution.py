"""Every setting resolved once, from layers that remember where each value came from.

Order, first wins: flags; the record of the stage that made what is used; `DCDM_<STAGE>__<KEY>` in the environment;
`--config FILE`; `dcdm.toml` in the run folder; the preset; defaults. A record wins because it is a fact; where it does
so over what somebody wrote, `Resolved.overridden` says it. Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dcdm_cli.errors import UsageError
from dcdm_cli.gate import shorten
from dcdm_cli.run.origins import (
    DEFAULT,
    FOREIGN,
    Layer,
    file_layer,
    follow,
    nearest,
    nested,
    preset_layer,
    refuse_foreign,
    split_list,
)
from dcdm_cli.run.settings import ClassifierConfig, Config

ENV_PREFIX = "DCDM_"
ENV_OWN = {"DCDM_RUN", "DCDM_DEBUG"}  # read elsewhere, not settings
RENAMED = {"export.precision": "generate.precision"}  # old key -> the one that it is now; understood for one release


@dataclass(frozen=True)
class Override:
    """A record's value that stands in place of what a file or the environment says."""

    key: str
    said: Any
    said_in: str
    used: Any
    record: str


@dataclass(frozen=True)
class Resolved:
    """The final settings and, for each dotted key, where its value came from. overridden: by records. renamed: one line
    for each old key that was understood."""

    config: Config
    origins: Mapping[str, str]
    overridden: tuple[Override, ...] = ()
    renamed: tuple[str, ...] = ()


def resolve(
    *,
    flags: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    run_file: Path | None = None,
    recorded: Iterable[Layer] = (),
    lowest: Mapping[str, Any] | None = None,
) -> Resolved:
    """flags: dotted key -> value, None = not given. Raises UsageError for unknown keys and values that break a rule.

    recorded: what earlier stages of the run were done with; only flags win over it, because it is a fact. lowest: what
    a command starts from, dotted; a preset named elsewhere replaces its `preset`, everything else wins over it.
    """
    starting = Layer("command", nested(lowest or {}))
    of_run = file_layer(run_file, required=False)
    for layer in of_run:
        refuse_foreign(layer)
    written = [*of_run, *file_layer(config_file, required=True), _environment_layer()]  # the weakest first
    given = Layer("flag", nested({k: v for k, v in (flags or {}).items() if v is not None}))
    (starting, *written, given), hints = _with_new_names([starting, *written, given])
    facts = [Layer(layer.origin, known_only(layer.values)) for layer in recorded]
    # Which preset: the strongest layer decides. What is in it stands below all of them.
    named = (layer.values.get("preset") for layer in (given, *reversed(facts), *reversed(written), starting))
    first = preset_layer(_optional(next((name for name in named if name), None)))
    starting = Layer("command", {key: value for key, value in starting.values.items() if key != "preset"})
    for layer in (starting, *written, *facts, given):
        _refuse_unknown(layer)
    config, origins = _merged([first, starting, *written, *facts, given])
    free = [layer for layer in written if layer.values]
    overridden = _overridden(free, facts, given, (config, origins), [first, starting]) if facts else ()
    known = {key: origins.get(key, DEFAULT) for key in _leaves(config.model_dump())}
    return Resolved(config, known | {k: v for k, v in origins.items() if k in known}, tuple(overridden), tuple(hints))


def sections() -> list[str]:
    """Names of the sections of the settings."""
    kinds = {name: field.annotation for name, field in Config.model_fields.items()}
    return [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)]


def field_of(key: str) -> Any:
    """The pydantic field of a dotted key that is known."""
    section, _, name = key.partition(".")
    field: Any = Config.model_fields[section]
    return field.annotation.model_fields[name] if name else field


def plain_type(annotation: Any) -> Any:
    """The type without `| None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def listed(key: str, value: Any) -> Any:
    """The value of a list that is written as in flags, with commas, as a list; any other value as it is."""
    # int: a list of one number, which --set reads as that number.
    is_list = isinstance(value, str | int) and get_origin(plain_type(field_of(key).annotation)) is tuple
    return split_list(str(value)) if is_list else value


def renamed(key: str) -> str:
    """The key that a key is now."""
    return RENAMED.get(key, key)


def known_keys() -> list[str]:
    """Every setting as a dotted key; a free-form table (model_args) counts as one key."""
    return list(_all_keys())


def flat_items(config: Config) -> dict[str, Any]:
    """Dotted key -> plain JSON value."""
    dumped = config.model_dump(mode="json")
    return {key: _lookup(dumped, key) for key in known_keys()}


def _optional(name: Any) -> Any:
    return None if name == "none" else name


def _merged(layers: Sequence[Layer]) -> tuple[Config, dict[str, str]]:
    """The settings of all layers, the last one winning, and the origin of each that a layer names."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _merge(merged, layer.values)
        origins |= dict.fromkeys(_leaves(layer.values), layer.origin)
    if not _optional(merged.get("preset")):
        merged.pop("preset", None)
    follow(merged, origins, "score", ("judge", "downstream"), list(ClassifierConfig.model_fields))
    return _validate(merged, origins), origins


def _overridden(
    written: Sequence[Layer],
    facts: Sequence[Layer],
    given: Layer,
    final: tuple[Config, Mapping[str, str]],
    start: Sequence[Layer],
) -> Iterator[Override]:
    """What a file or the environment says otherwise than a record, where no flag decides."""
    of_records, of_flags = _all_leaves(facts), _all_leaves([given])
    contested = (_all_leaves(written) & of_records) - of_flags
    if not contested:
        return
    config, origins = _merged([*start, *written])
    said, used = flat_items(config), flat_items(final[0])
    for key in known_keys():
        if key in contested and said[key] != used[key]:
            yield Override(key, said[key], origins[key], used[key], final[1][key])


def _all_leaves(layers: Iterable[Layer]) -> set[str]:
    return {key for layer in layers for key in _leaves(layer.values)}


def _with_new_names(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """The layers with every renamed key under its new name, and what to tell whoever wrote it."""
    made, hints = [], []
    for layer in layers:
        values = {key: _lookup(layer.values, key) for key in _leaves(layer.values)}
        for old in [key for key in RENAMED if key in values]:
            new, value = RENAMED[old], values.pop(old)
            if values.get(new, value) != value:
                raise UsageError(
                    f"{old} = {value!r} and {new} = {values[new]!r} ({layer.origin}) are one setting", f"keep {new}"
                )
            values[new] = value
            hints.append(f"{old} ({layer.origin}) is {new} now: one setting for export and generation; write that")
        made.append(Layer(layer.origin, nested(values)) if hints else layer)
    return made, hints


@functools.cache
def _all_keys() -> tuple[str, ...]:
    return tuple(_model_keys(Config))


@functools.cache
def _tables() -> frozenset[str]:
    """Dotted names of everything that holds settings."""
    return frozenset(key.rsplit(".", 1)[0] for key in _all_keys() if "." in key)


def _model_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _model_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _lookup(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and prefix + key in _tables():
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def known_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings that an older version had, and without those that a run folder may not decide."""
    known = set(known_keys()) - set(FOREIGN)
    return nested({key: _lookup(values, key) for key in _leaves(values) if key in known})


def _refuse_unknown(layer: Layer) -> None:
    known = known_keys()
    for key in _leaves(layer.values):
        if key not in known:
            raise UsageError(f"unknown setting {key!r} ({layer.origin})", nearest(key, known))


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        # arguments of one network mean nothing to another
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and key != "model_args":
            _merge(into[key], value)
        else:
            # a copy: later layers are merged into it, and presets are everybody's
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _environment_layer() -> Layer:
    names = [n for n in os.environ if n.startswith(ENV_PREFIX) and n not in ENV_OWN]
    known = known_keys()
    for name in names:
        key = renamed(name.removeprefix(ENV_PREFIX).lower().replace("__", "."))
        if key not in known:
            raise UsageError(f"unknown setting in the environment: {name}", nearest(key, known))
    return Layer("environment", _parse_environment() if names else {})


def _parse_environment() -> dict[str, Any]:
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError  # slow to import, and rarely needed

    class Environment(Config, BaseSettings):  # pyright: ignore[reportIncompatibleVariableOverride]
        pass

    class Source(EnvSettingsSource):
        def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
            """Tables are JSON; lists may be written with commas, as in flags."""
            is_list = get_origin(field.annotation) is tuple and not value.lstrip().startswith("[")
            return split_list(value) if is_list else super().decode_complex_value(field_name, field, value)

    try:
        values = Source(Environment, env_prefix=ENV_PREFIX, env_nested_delimiter="__")()
    except SettingsError as error:
        raise UsageError(f"cannot read the environment: {error}", "write lists as 1,2 and tables as JSON") from error
    return {name: value for name, value in values.items() if value is not None}


def _validate(merged: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate({name: {} for name in sections()} | dict(merged))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        # The longest: an element of a list comes from where its list does.
        known = [k for k in origins if key.startswith(k)]
        place = f" ({origins[max(known, key=len)]})" if known else ""
        raise UsageError(
            f"{key} = {shorten(first.get('input'))}{place}: {first['msg']}",
            "dcdm config show lists every setting and its value",
        ) from error
