"""What a setting changes: every field of the settings is declared with its role, and staleness is asked of roles alone.

`result` changes what comes out, `plan` what is asked for, `execution` only how fast, where or how carefully. Two roles
have finer kinds, for stages that depend on a part: `of` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

RESULT = "result"
UNCALIBRATED = "result.uncalibrated"  # changes images, but not what the calibration measured: the choice among draws
FILES = "result.files"  # changes what lies on disk, but no image that is made
PROMPTS = "result.prompts"  # changes the prompts that a language model writes, but no caption of an image
PLAN = "plan"  # what is asked of an image
BUDGET = "plan.budget"  # what the run's own plan alone reads: how many of which class, from which seeds, in what shards
EXECUTION = "execution"
ROLES = (RESULT, UNCALIBRATED, FILES, PROMPTS, PLAN, BUDGET, EXECUTION)
OUTCOME = tuple(role for role in ROLES if role != EXECUTION)
IMAGES = (RESULT, UNCALIBRATED, PLAN)  # of images that are made beside the run's own: in sets, probes and atlases


def result(*, of: str = "", **field: Any) -> Any:
    """A pydantic field that changes what comes out. of: `uncalibrated`, `files` or `prompts`, see above."""
    return _field(f"{RESULT}.{of}" if of else RESULT, field)


def plan(*, of: str = "", **field: Any) -> Any:
    """A pydantic field that a finished plan has used up. of: `budget`."""
    return _field(f"{PLAN}.{of}" if of else PLAN, field)


def execution(**field: Any) -> Any:
    """A pydantic field that changes how the work is done, and nothing of what comes out beyond rounding."""
    return _field(EXECUTION, field)


def role_of(section: type[BaseModel], name: str) -> str:
    """One of `ROLES`. Raises TypeError for a field that was declared without."""
    extra = section.model_fields[name].json_schema_extra
    role = extra.get("role") if isinstance(extra, dict) else None
    if role not in ROLES:
        raise TypeError(f"{section.__name__}.{name} has no role: declare it with result(), plan() or execution()")
    return str(role)


def fingerprint(section: BaseModel, *roles: str) -> dict[str, Any]:
    """The settings with one of these roles (none given: all but execution), as plain JSON values, to be compared or
    hashed."""
    return _those(section, roles or OUTCOME)


def others(section: BaseModel, *roles: str) -> dict[str, Any]:
    """The settings that `fingerprint` leaves out."""
    return _those(section, tuple(role for role in ROLES if role not in (roles or OUTCOME)))


def fingerprints(sections: Mapping[str, BaseModel], *roles: str) -> dict[str, dict[str, Any]]:
    return {name: fingerprint(section, *roles) for name, section in sections.items()}


def all_others(sections: Mapping[str, BaseModel], *roles: str) -> dict[str, dict[str, Any]]:
    return {name: others(section, *roles) for name, section in sections.items()}


def counted(config: Mapping[str, Any], uncounted: Mapping[str, Any]) -> dict[str, Any]:
    """Without the uncounted settings, in sections too, and without those that are off (None)."""
    kept = {}
    for key, value in config.items():
        inner = uncounted.get(key)
        if isinstance(value, Mapping) and (inner is None or isinstance(inner, Mapping)):
            kept[key] = counted(value, inner or {})
        elif key not in uncounted and value is not None:
            kept[key] = value
    return kept


def _field(role: str, field: dict[str, Any]) -> Any:
    return Field(**field, json_schema_extra={"role": role})


def _those(section: BaseModel, roles: tuple[str, ...]) -> dict[str, Any]:
    names = {name for name in type(section).model_fields if role_of(type(section), name) in roles}
    return section.model_dump(mode="json", include=names)
