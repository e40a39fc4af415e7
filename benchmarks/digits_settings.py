"""How much of the digits experiments is run: seeds, arms and steps per setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomlkit

from dcdm_cli.evaluation.experiments import AdapterSpec, ArmSpec, Experiment, find_experiment

ORDER = ("adherence", "buckets", "controls", "ratio-sweep", "mean-sweep", "transfer", "loop", "ablation", "target")


@dataclass(frozen=True)
class Short:
    """An experiment at less cost: every adapter of it, ours too, learns for `steps`, and arms get `ratio` images."""

    steps: int
    ratio: float


@dataclass(frozen=True)
class Setting:
    """seeds: paired seeds of each experiment, most telling first. settings: of dcdm, beside the digits preset."""

    seeds: Mapping[str, int]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    short: Mapping[str, Short] = field(default_factory=dict)


_NET = {"model_args": {"channels": [8, 12, 16, 32], "stem_width": 8}}
SETTINGS = {
    "full": Setting(dict.fromkeys(ORDER, 8)),
    "cpu": Setting(
        {
            "adherence": 1, "buckets": 5, "controls": 5, "ratio-sweep": 3, "mean-sweep": 3, "transfer": 3, "loop": 3,
            "ablation": 3, "target": 6,
        },
        {"evaluate": {"per_target": 50}},
        {"ablation": Short(steps=300, ratio=0.5)},
    ),
    "tiny": Setting(
        dict.fromkeys(ORDER, 2),
        {
            "score": {"steps": 10, "repeats": 1, "at_chance": "warn", **_NET},
            "judge": {"steps": 20, **_NET},
            "downstream": {"steps": 3, **_NET},
            "finetune": {"steps": 2, "rank": 2, "strength": "none"},
            "calibrate": {"enabled": False},
            "generate": {"steps": 2, "ratio": 0.1, "attempts": 2},
            "evaluate": {
                "targets": [0.2, 0.5], "per_target": 10, "density_images": 10, "synthetic_ratio": 0.1, "plan_folds": 2,
                "workers": 1,
            },
        },
        {"ablation": Short(steps=1, ratio=0.05)},
    ),
}  # fmt: skip


def shortened(name: str, short: Short) -> str:
    """A built-in experiment as the TOML of a shorter one."""
    experiment = find_experiment(name)
    about = f"{experiment.about}; every adapter learnt for {short.steps} steps"
    document: dict[str, Any] = {"about": about, "baseline": experiment.baseline, "focus": experiment.focus}
    document["arms"] = [_short_arm(arm, short) for arm in experiment.arms]
    used = {arm.adapter for arm in experiment.arms if arm.source == "generated"}
    document["adapters"] = {_short_name(key): _short_adapter(experiment, key, short.steps) for key in sorted(used)}
    return tomlkit.dumps(document)


def _short_arm(arm: ArmSpec, short: Short) -> dict[str, Any]:
    written = arm.model_dump(exclude_defaults=True)
    if arm.source == "none":
        return written
    return {**written, "ratio": short.ratio, "adapter": _short_name(arm.adapter)}


def _short_adapter(experiment: Experiment, key: str, steps: int) -> dict[str, Any]:
    spec: AdapterSpec = experiment.adapter(key)
    written = spec.model_dump(exclude_defaults=True)
    return {**written, "finetune": {**spec.finetune, "steps": steps}}


def _short_name(adapter: str) -> str:
    return f"{adapter}-short"
