"""What all settings share: no unknown keys, `none` for off, finite numbers, whole numbers and texts within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
LARGEST = 2**31 - 1  # of whole numbers: seeds are added up, and random generators and array shapes take no more
LONGEST = 2**16  # characters of a text
Scale = Annotated[float, Field(ge=1, le=LARGEST)]  # of guidance; 1 = none
Seed = Annotated[int, Field(ge=0, lt=2**30)]  # two of them make a whole number that is not too large

# Of images that are made, in pixels: several times what any base draws; memory grows with the square of it
Side = Annotated[int, Field(ge=8, le=2**12)]


class Section(BaseModel):
    """Numbers are finite and texts short, in free-form tables too."""

    # Built when first used: the settings as a whole are one schema, and --help waits for no other.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        """TOML, flags and the environment have no null: `none` switches an optional setting off. `difficulty = 0.5` is
        a text without quotes."""
        if not isinstance(values, Mapping):
            return values
        return {
            # Unknown names stay, so that they are refused by name.
            name: _plain(cls.model_fields[name].annotation, v) if name in cls.model_fields else v
            for name, v in values.items()
        }

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        """Of what was given: one look at a section costs --help less than one validator per field."""
        for name in self.model_fields_set:
            value = getattr(self, name)
            if fault := beyond(value):
                # Not a plain ValueError: one of a whole section would not say which setting it is.
                said = PydanticCustomError("value_error", "Value error, {fault}", {"fault": fault})
                place = InitErrorDetails(type=said, loc=(name,), input=value)
                raise ValidationError.from_exception_data(type(self).__name__, [place])
        return self


def _plain(annotation: Any, value: Any) -> Any:
    if annotation is str and type(value) in (int, float):  # not isinstance: True is an int too, and no text
        return str(value)
    return None if value == "none" and type(None) in get_args(annotation) else value


def beyond(value: Any) -> str:
    """Which bound a value breaks, looked at all through lists and tables; empty when none."""
    if isinstance(value, Mapping):
        return next(filter(None, map(beyond, [*value.keys(), *value.values()])), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(beyond, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "give a finite number"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"give a whole number of at most {LARGEST}"
    if isinstance(value, (str, Path)) and ("\0" in str(value) or len(str(value)) > LONGEST):
        return f"give a text without NUL of at most {LONGEST} characters"
    return ""
