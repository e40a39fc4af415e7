"""What a comparison will make, told before it begins, and how long that takes by what the run's own work took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcdm_cli.pace import LONG_S, estimated

if TYPE_CHECKING:
    from pathlib import Path

    from dcdm_cli.evaluation.experiments import ArmSpec
    from dcdm_cli.run.store import RunFolder
    from dcdm_cli.stages.experiments.sets import GeneratedSets


@dataclass(frozen=True)
class ToMake:
    """generators: to be fine-tuned; sets, images: to be generated, all images of the sets together; probes: adherence
    images; classifiers: at most, since finished ones are found again."""

    generators: int
    sets: int
    images: int
    classifiers: int
    probes: int = 0

    def told(self, run: RunFolder) -> str:
        """One line. run: whose records say what fine-tuning and an image took."""
        parts = [
            *([f"{self.probes:,} adherence images"] if self.probes else []),
            *([_counted(self.generators, "generator") + " to fine-tune"] if self.generators else []),
            *([f"{_counted(self.sets, 'set')} of {self.images:,} images in all"] if self.sets else []),
            _counted(self.classifiers, "classifier"),
        ]
        seconds = self.seconds(run)
        if seconds < LONG_S:
            return "; ".join(parts)
        return f"{'; '.join(parts)}; about {estimated(seconds)} as the run's own stages went, classifiers apart"

    def seconds(self, run: RunFolder) -> float:
        """Of generators and images, as far as the run has done the like."""
        tuned, made = run.record("finetune"), run.record("generate")
        count = made.results.get("images") if made else 0
        each = made.seconds / count if made and count else 0.0
        return self.generators * (tuned.seconds if tuned else 0.0) + (self.images + self.probes) * each


def to_make(sets: GeneratedSets, arms: Sequence[ArmSpec], ratios: Sequence[float], seeds: Sequence[int]) -> ToMake:
    """For one kind of classifier, and without adherence."""
    # by folder: what arms share is made, and counted, once
    generators: set[Path] = set()
    images: dict[Path, int] = {}
    for arm in (arm for arm in arms if arm.source == "generated" and not arm.set):
        generators |= sets.untrained(arm, seeds)
        for ratio in [arm.ratio] if arm.ratio else ratios:
            images |= sets.unmade(arm, ratio, seeds)
    return ToMake(len(generators), len(images), sum(images.values()), len(arms) * len(ratios) * len(seeds))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
