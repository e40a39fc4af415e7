"""The arms of a comparison: what `evaluate.arms` or an experiment names, as training sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.downstream import NOTHING, Arm, Samples, Trial, TrialLedger, arm_key
from dcdm_cli.evaluation.experiments import ArmSpec
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.settings import ClassifierConfig
from dcdm_cli.stages.experiments.named_sets import finished_set
from dcdm_cli.stages.experiments.sets import GeneratedSets

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

# What `evaluate.arms` may name; dcdm uses the run's own --difficulty. Plain knows nothing of difficulty: its images are
# neither measured nor drawn again.
ARMS = {
    "real": ArmSpec(name="real", source="none"),
    "upsampled": ArmSpec(name="upsampled", source="upsampled"),
    "augmented": ArmSpec(name="augmented", source="augmented"),
    "plain": ArmSpec(name="plain", adapter="plain", attempts=1),
    "easy": ArmSpec(name="easy", difficulty="normal:0.1,0.1"),
    "dcdm": ArmSpec(name="dcdm"),
    "hard": ArmSpec(name="hard", difficulty="normal:0.8,0.1", cap=1.0),
    "augmented + plain": ArmSpec(name="augmented + plain", adapter="plain", attempts=1, augment=True),
    "augmented + dcdm": ArmSpec(name="augmented + dcdm", augment=True),
}
# Compared besides, where both arms are asked for: with the augmentation on both sides.
PAIRS = (
    ("augmented + dcdm", "augmented"),
    ("augmented + dcdm", "augmented + plain"),
    ("augmented + plain", "augmented"),
)


def named_arms(names: Sequence[str]) -> list[ArmSpec]:
    """Raises UsageError for an unknown arm."""
    for name in names:
        if name not in ARMS:
            raise UsageError(f"unknown arm {name!r}", nearest(name, list(ARMS)))
    return [ARMS[name] for name in names]


def make_arm(spec: ArmSpec, ratio: float, real: Manifest, sets: GeneratedSets) -> Arm:
    """Images are generated when a classifier first asks for them."""
    ratio = spec.ratio or ratio
    classifier = {"policy": spec.policy, "mixup": spec.mixup} if spec.augmented else None
    if spec.set:
        made = finished_set(sets.session.run, spec.set)
        # by its images, not by its name: a set that was made anew is another arm in the ledger
        key = f"set {made.digest('sample_id', 'label', 'generator')}"
        images = Samples(made.paths(), made.column("label").astype(np.int64))
        return Arm(spec.name, lambda seed: images, key, classifier)
    if spec.source in ("none", "augmented"):
        return Arm(spec.name, lambda seed: NOTHING, "", classifier)
    if spec.source == "upsampled":
        own = Samples(real.paths(), real.column("label").astype(np.int64))
        return Arm(spec.name, lambda seed: upsampled(own, ratio, seed), f"upsampled {ratio:g}", classifier)
    key = f"{sets.key(spec, ratio)} {ratio:g}"
    return Arm(spec.name, lambda seed: sets.make(spec, ratio, seed), key, classifier)


def make_sets(
    arms: Iterable[tuple[Arm, ClassifierConfig]], trial: Trial, seeds: Sequence[int], ledger: TrialLedger
) -> None:
    """Makes the images that classifiers will ask for, arm by arm: a generator is opened once, not once per seed."""
    for arm, config in arms:
        for seed in seeds:
            # a finished classifier will not ask for its images
            if ledger.get(arm_key(arm, trial, config, seed)) is None:
                arm.extra(seed)


def upsampled(real: Samples, ratio: float, seed: int) -> Samples:
    """`ratio` real images per real one: whole copies, and a random part of one more."""
    whole, rest = divmod(round(ratio * len(real)), len(real))
    part = np.random.default_rng((seed, 23)).permutation(len(real))[:rest]
    rows = np.concatenate([np.tile(np.arange(len(real)), whole), np.sort(part)])
    return Samples([real.paths[i] for i in rows], real.labels[rows])
