"""The closed loop: what difficulty comes out when s is asked for, and what to ask for so that s comes out.

Not from the paper. Control is monotone but compressed at the hard end, so a probe batch over a grid of s is generated
and scored, isotonic regression fits requested -> realised, and generation inverts it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from dcdm_cli.errors import MismatchError, NumericalError
from dcdm_cli.files import write_json


@dataclass(frozen=True)
class Calibration:
    """Per grid point: requested s, mean realised s, its isotonic fit, and the share of images that the scorer still
    gives their label. settings: the sampler settings it was measured with; it holds for those only."""

    requested: tuple[float, ...]
    realised: tuple[float, ...]
    fitted: tuple[float, ...]
    agreement: tuple[float, ...]
    images: int
    settings: dict[str, Any]

    @property
    def reachable(self) -> tuple[float, float]:
        """Lowest and highest mean difficulty that asking for s in [0, 1] produces."""
        return self.fitted[0], self.fitted[-1]

    def request_for(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to ask for so that `target` comes out on average, and which targets lie outside the reachable range
        (those get the nearest end). float32 [N], bool [N]."""
        low, high = self.reachable
        requested = np.interp(target, *self._inverse())
        return requested.astype(np.float32), (target < low) | (target > high)

    def _inverse(self) -> tuple[np.ndarray, np.ndarray]:
        """Points of the inverse map; flat stretches collapse to their middle, which is the least biased request."""
        fitted, requested = np.asarray(self.fitted), np.asarray(self.requested)
        levels = np.unique(fitted)
        middle = np.array([requested[fitted == level].mean() for level in levels])
        middle[0], middle[-1] = requested[fitted == levels[0]].max(), requested[fitted == levels[-1]].min()
        return levels, middle


def fit_calibration(
    requested: np.ndarray, realised: np.ndarray, agrees: np.ndarray, settings: dict[str, Any]
) -> Calibration:
    """requested, realised float [N] in [0, 1] and agrees bool [N], one entry per probe image.

    Raises NumericalError when the scores are not finite, or when realised difficulty does not rise with the request.
    """
    if not np.isfinite(realised).all():
        raise NumericalError("the probe images' scores are not finite", "dcdm score --force, then calibrate again")
    grid = np.unique(requested)
    means = np.array([realised[requested == r].mean() for r in grid])
    counts = np.array([(requested == r).sum() for r in grid])
    fitted = IsotonicRegression(y_min=0, y_max=1).fit_transform(grid, means, sample_weight=counts)
    if fitted[-1] - fitted[0] < 1e-3:
        raise NumericalError(
            f"realised difficulty does not rise with the request: {means[0]:.2f} at {grid[0]:.2f}, "
            f"{means[-1]:.2f} at {grid[-1]:.2f}",
            "train longer (--steps), or raise --difficulty-guidance",
        )
    agreement = [float(agrees[requested == r].mean()) for r in grid]
    curves = [tuple(round(float(v), 6) for v in values) for values in (grid, means, fitted, agreement)]
    return Calibration(*curves, images=len(requested), settings=settings)


def save_calibration(calibration: Calibration, file: Path) -> None:
    write_json(file, {"schema": 1, **asdict(calibration)})


def load_calibration(file: Path) -> Calibration | None:
    """None when there is no such file. Raises MismatchError when it is damaged."""
    if not file.is_file():
        return None
    try:
        raw = json.loads(file.read_text())
        curves = {key: tuple(raw[key]) for key in ("requested", "realised", "fitted", "agreement")}
        return Calibration(**curves, images=raw["images"], settings=raw["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(
            f"{file} is damaged: {error}", "make it again: dcdm finetune --recalibrate", file=file
        ) from error
