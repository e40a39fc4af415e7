"""Target distributions of difficulty: what the user writes after --difficulty."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dcdm_cli.errors import UsageError

_NUMBER = r"([0-9]*\.?[0-9]+)"
_FORMS = {
    "normal": re.compile(rf"normal:{_NUMBER},{_NUMBER}"),
    "uniform": re.compile(rf"uniform:{_NUMBER},{_NUMBER}"),
    "fixed": re.compile(rf"fixed:{_NUMBER}"),
    "real": re.compile("real"),
}
_PLAIN = re.compile(_NUMBER)  # S alone means fixed:S


@dataclass(frozen=True)
class Target:
    """kind: normal (mean, std), uniform (low, high), fixed (value) or real; parameters in [0, 1]."""

    kind: str
    parameters: tuple[float, ...]

    def draw(self, count: int, rng: np.random.Generator, cap: float, real: np.ndarray) -> np.ndarray:
        """float32 [count] in [0, cap]. real: the real images' difficulties, used by `real`.

        The normal is truncated to [0, cap], not clipped, so that no mass piles up at the ends. Raises UsageError when
        the distribution has no mass below the cap.
        """
        if self.kind == "normal":
            from scipy import stats  # slow to import; workers, which draw nothing, start without it

            mean, std = self.parameters
            values = stats.truncnorm.rvs(-mean / std, (cap - mean) / std, mean, std, count, random_state=rng)
        elif self.kind == "uniform":
            low, high = self.parameters
            self._require(low <= cap, cap)
            values = rng.uniform(low, min(high, cap), count)
        elif self.kind == "fixed":
            self._require(self.parameters[0] <= cap, cap)
            values = np.full(count, self.parameters[0])
        else:
            allowed = real[np.isfinite(real) & (real <= cap)]
            self._require(len(allowed) > 0, cap)
            values = rng.choice(allowed, count)
        return np.asarray(values, np.float32)

    def _require(self, fits: bool, cap: float) -> None:
        if not fits:
            raise UsageError(
                f"difficulty {self.kind}:{','.join(map(str, self.parameters))} lies above the cap of {cap}",
                "raise it with --difficulty-cap 1 (labels break at the hard end; dcdm evaluate shows where)",
            )


@dataclass(frozen=True)
class Targets:
    """One distribution for all classes, and others for some of them. of: label -> its distribution."""

    default: Target
    of: Mapping[int, Target] = field(default_factory=dict)

    def draw(self, labels: np.ndarray, rng: np.random.Generator, cap: float, real: np.ndarray) -> np.ndarray:
        """float32 [N] in [0, cap] for labels int64 [N]; see `Target.draw`."""
        values = self.default.draw(len(labels), rng, cap, real)
        # sorted: the order of the table's rows decides nothing
        for label, target in sorted(self.of.items()):
            rows = np.flatnonzero(labels == label)
            values[rows] = target.draw(len(rows), rng, cap, real)
        return values


def kind_and_numbers(text: str) -> tuple[str, tuple[str, ...]]:
    """A target's text as it is written: its kind and its numbers, whether or not `parse_target` takes them."""
    kind, _, numbers = text.partition(":")
    return kind, tuple(numbers.split(",")) if numbers else ()


def parse_target(text: str) -> Target:
    """Raises UsageError for an unknown form or a value outside its range."""
    written = text.replace(" ", "")
    written = f"fixed:{written}" if _PLAIN.fullmatch(written) else written
    for kind, form in _FORMS.items():
        match = form.fullmatch(written)
        if match:
            return _checked(Target(kind, tuple(float(v) for v in match.groups())), text)
    raise UsageError(
        f"--difficulty {text!r} is not a target distribution",
        "write normal:0.5,0.1 or uniform:0.2,0.6 or fixed:0.5 or real, or best for what was measured to be",
    )


def _checked(target: Target, text: str) -> Target:
    if any(not 0 <= value <= 1 for value in target.parameters):
        raise UsageError(f"--difficulty {text!r}: every number must lie in [0, 1]", "0 is easy, 1 is hard")
    if target.kind == "normal" and target.parameters[1] == 0:
        raise UsageError(f"--difficulty {text!r}: the standard deviation must be above 0", "use fixed:S for one value")
    if target.kind == "uniform" and target.parameters[0] >= target.parameters[1]:
        raise UsageError(
            f"--difficulty {text!r}: the first number must be below the second", "for example uniform:0.2,0.6"
        )
    return target
