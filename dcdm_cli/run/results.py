"""Of the results that a stage's record keeps, those that later commands work with: their kinds and ranges."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from dcdm_cli.gate import Count, Finite, Share, Text, Word


class Scales(BaseModel):
    """The settings of generation that fine-tuning chooses; no other may come from a record."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    lora_scale: Finite | None = None
    text_guidance: Finite | None = None
    difficulty_guidance: Finite | None = None


class ChosenStrength(BaseModel):
    """What later stages work with of the choice of strength; the rest of it is for people."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    settings: Scales | None = None


class Results(BaseModel):
    """Kinds of the results that later commands work with, where a stage has them; the others are for people."""

    model_config = ConfigDict(extra="allow", defer_build=True)  # built when a record is read

    images: Count | None = None
    rejected: Count | None = None
    failed: Count | None = None
    method: Word | None = None
    reason: Text | None = None
    reachable: tuple[Share, Share] | None = None
    strength: ChosenStrength | None = None


def check_results(results: dict[str, Any]) -> dict[str, Any]:
    """The same results. Raises ValidationError, which is a ValueError, for one of another kind."""
    Results.model_validate(results)
    return results
