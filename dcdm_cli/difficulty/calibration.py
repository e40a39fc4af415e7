"""The closed loop: what difficulty comes out when s is asked for, and what to ask for so that s comes out.

Not from the paper. Control is monotone but compressed at the hard end, and an "easy" image of a hard class is harder
than one of an easy class. So a probe batch over a grid of s is generated and scored, isotonic regression fits
requested -> realised for every class, and generation inverts it. Where generation may draw an image several times and
keep the one closest to its target, single images reach further than means do; the spread of the probes says how far.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from sklearn.isotonic import IsotonicRegression

from dcdm_cli.errors import FlatResponseError, MismatchError, NumericalError
from dcdm_cli.files import write_json
from dcdm_cli.gate import Count, Share, read_document
from dcdm_cli.section import LARGEST

PRIOR_IMAGES = 3  # a class's own probes count against this many of all classes together
REACH = 0.05  # a target is reachable when the mean over the classes can come this close to it
TARGETS = np.linspace(0, 1, 201)  # where reach is looked at
SPREAD = np.linspace(0.025, 0.975, 20)  # quantiles kept of what the probes scatter around their class's mean


Deviation = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Calibration:
    """Per grid point: requested s, mean realised s over all probes, its isotonic fit, and the share of images that the
    scorer still gives their label. classes: the isotonic fit of each class, [C][grid]. spread: quantiles `SPREAD` of
    realised minus the class's fit, [grid][20]. images: probes in all. settings: the sampler settings it was measured
    with; it holds for those only. attempts: draws per image that generation may make."""

    requested: tuple[Share, ...]
    realised: tuple[Share, ...]
    fitted: tuple[Share, ...]
    agreement: tuple[Share, ...]
    classes: tuple[tuple[Share, ...], ...]
    spread: tuple[tuple[Deviation, ...], ...]
    images: Count
    settings: dict[str, Any]
    attempts: Annotated[int, Field(ge=1, le=LARGEST)] = 1
    schema: Literal[1] = 1

    @property
    def reachable(self) -> tuple[float, float]:
        """Lowest and highest target that comes out within `REACH` as the mean over the classes."""
        means = np.mean([self.expected(TARGETS, label) for label in range(len(self.classes))], axis=0)
        inside = TARGETS[np.abs(means - TARGETS) <= REACH]
        # no target comes out as asked: the range of what comes out at all
        return (float(inside[0]), float(inside[-1])) if len(inside) else (self.fitted[0], self.fitted[-1])

    def request_for(self, target: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to ask for so that `target` float [N] comes out on average in class `label` int [N], and which targets
        lie further than `REACH` outside what that class can reach (those get the nearest end). float32 [N], bool [N].
        """
        target, label = np.asarray(target), np.asarray(label)
        requested, outside = np.zeros(len(target), np.float32), np.zeros(len(target), bool)
        order = np.argsort(label, kind="stable")  # one pass, however many classes there are
        known, starts = np.unique(label[order], return_index=True)
        for one, mine in zip(known, np.split(order, starts)[1:], strict=True):
            requested[mine] = self._request(target[mine], one)
            miss = np.abs(self.expected(TARGETS, one) - TARGETS)
            outside[mine] = np.interp(target[mine], TARGETS, miss) > REACH
        return requested, outside

    def expected(self, target: np.ndarray, label: int) -> np.ndarray:
        """Mean realised difficulty in class `label` when `target` float [N] is asked for and the closest of `attempts`
        draws is kept: float64 [N]."""
        grid, curve = np.asarray(self.requested), np.asarray(self.classes[label])
        request = self._request(target, label)
        mean = np.interp(request, grid, curve)
        if self.attempts == 1:
            return mean
        nearest = np.abs(request[:, None] - grid).argmin(1)
        # the spread is that of a grid point nearby, and may stick out here
        draws = np.clip(mean[:, None] + np.asarray(self.spread)[nearest], 0, 1)
        by_distance = np.take_along_axis(draws, np.abs(draws - target[:, None]).argsort(1), axis=1)
        left = 1 - np.arange(len(SPREAD) + 1) / len(SPREAD)  # share of draws that are no closer than the k-th closest
        return by_distance @ (left[:-1] ** self.attempts - left[1:] ** self.attempts)

    def mean_miss(self) -> float:
        """Mean distance of what comes out from what is wanted, over the targets within `reachable` and all classes."""
        low, high = self.reachable
        targets = TARGETS[(low <= TARGETS) & (high >= TARGETS)]
        misses = [np.abs(self.expected(targets, label) - targets) for label in range(len(self.classes))]
        return float(np.mean(misses)) if len(targets) else 1.0  # nothing in reach is the worst there is

    def _request(self, target: np.ndarray, label: int) -> np.ndarray:
        return np.interp(target, *_inverse(np.asarray(self.requested), np.asarray(self.classes[label])))


def fit_calibration(
    requested: np.ndarray, realised: np.ndarray, agrees: np.ndarray, label: np.ndarray, classes: int,
    settings: dict[str, Any],
) -> Calibration:  # fmt: skip
    """requested, realised float [N] in [0, 1], agrees bool [N], label int [N]: one entry per probe image.

    A class's means are drawn towards the fit of all classes by `PRIOR_IMAGES`; a class without probes gets those.
    Raises NumericalError when the scores are not finite, FlatResponseError when realised difficulty does not rise with
    the request.
    """
    if not np.isfinite(realised).all():
        raise NumericalError("the probe images' scores are not finite", "dcdm score --force, then calibrate again")
    grid = np.unique(requested)
    at = [requested == r for r in grid]
    means = np.array([realised[rows].mean() for rows in at])
    counts = np.array([rows.sum() for rows in at])
    fitted = _isotonic(grid, means, counts)
    if fitted[-1] - fitted[0] < 1e-3:  # means that fall are fitted by a flat line, which is flat but for rounding
        raise FlatResponseError(
            f"realised difficulty does not rise with the request: {means[0]:.2f} at {grid[0]:.2f}, "
            f"{means[-1]:.2f} at {grid[-1]:.2f}",
            "train longer (--steps), or raise --difficulty-guidance",
        )
    own = [_isotonic(grid, *_shrunk(realised, [rows & (label == c) for rows in at], fitted)) for c in range(classes)]
    rest = realised - np.asarray(own)[label, np.searchsorted(grid, requested)]
    spread = [np.quantile(rest[rows], SPREAD) for rows in at]
    agreement = [float(agrees[rows].mean()) for rows in at]
    curves = [_rounded(values) for values in (grid, means, fitted, agreement)]
    return Calibration(
        *curves,
        classes=tuple(map(_rounded, own)),
        spread=tuple(map(_rounded, spread)),
        images=len(requested),
        settings=settings,
    )


def _shrunk(realised: np.ndarray, rows: list[np.ndarray], prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and weights of one class per grid point."""
    counts = np.array([r.sum() for r in rows])
    sums = np.array([realised[r].sum() for r in rows])
    return (sums + PRIOR_IMAGES * prior) / (counts + PRIOR_IMAGES), counts + PRIOR_IMAGES


def _isotonic(grid: np.ndarray, means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return IsotonicRegression(y_min=0, y_max=1).fit_transform(grid, means, sample_weight=weights)


def _inverse(requested: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the inverse map; flat stretches collapse to their middle, which is the least biased request."""
    levels = np.unique(fitted)
    middle = np.array([requested[fitted == level].mean() for level in levels])
    # at the ends the mildest request that gets there: more of it gains nothing
    middle[0], middle[-1] = requested[fitted == levels[0]].max(), requested[fitted == levels[-1]].min()
    return levels, middle


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in values)


def save_calibration(calibration: Calibration, file: Path) -> None:
    """`attempts` is left out: it is a setting of generation, not of what was measured."""
    write_json(file, {k: v for k, v in asdict(calibration).items() if k != "attempts"})


def load_calibration(file: Path) -> Calibration | None:
    """None when there is no such file. Raises MismatchError when it is damaged, or its parts do not fit each other."""
    if not file.is_file():
        return None
    again = "make it again: dcdm finetune --force"
    calibration = read_document(file, Calibration, again)
    fault = _misfit(calibration)
    if fault:
        raise MismatchError(f"{file} is damaged: {fault}", again, file=file)
    return calibration


def _misfit(calibration: Calibration) -> str:
    """What does not fit together, where single values are right; empty when all does."""
    points, grid = len(calibration.requested), np.asarray(calibration.requested)
    if points < 2 or not (np.diff(grid) > 0).all():
        return "requested must rise from point to point, of which there are two at least"
    curves = {"realised": calibration.realised, "fitted": calibration.fitted, "agreement": calibration.agreement}
    curves |= {f"classes.{label}": curve for label, curve in enumerate(calibration.classes)}
    for name, curve in curves.items():
        if len(curve) != points:
            return f"{name} has {len(curve)} values for {points} points"
        # what was measured may fall; a fit cannot, and generation inverts it
        if not name.startswith(("realised", "agreement")) and not (np.diff(curve) >= 0).all():
            return f"{name} falls from one point to the next"
    if not calibration.classes:
        return "classes has none"
    sizes = {len(quantiles) for quantiles in calibration.spread}
    fits = len(calibration.spread) == points and sizes == {len(SPREAD)}
    return "" if fits else f"spread must have {len(SPREAD)} quantiles for each of {points} points"
