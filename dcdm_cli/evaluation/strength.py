"""How far to fine-tune: what each point of a small grid keeps of the base and gives of the target, and which to take.

Not from the paper. Fine-tuning on few images ends in copies of them: labels hold, difficulty can be steered, and the
images are easy and teach nothing; with too little of it they are hard because they are wrong. What is worth most lies
between: images that the scorer finds hard and that still show their label to eyes which learned it from other real
images, those that the generator has not seen. A point is a number of steps, a scale of the LoRA and a pair of guidance
scales; features are of one network for all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from dcdm_cli.difficulty.linear import Head, Lesson, fit_head
from dcdm_cli.errors import UsageError
from dcdm_cli.evaluation.fidelity import NEIGHBOURS, density_coverage

CLOSE = 0.01  # quantile of distances from unseen real images to training images: nearer than that is a copy
NORMAL_95 = 1.96  # standard deviations
FEWEST = NEIGHBOURS + 2  # unseen real images, below which nothing can be said of coverage


@dataclass(frozen=True)
class Point:
    """One setting of strength. guidance scales as in `generate.text_guidance` and `generate.difficulty_guidance`."""

    steps: int
    lora_scale: float
    text_guidance: float
    difficulty_guidance: float

    def settings(self) -> dict[str, float]:
        """Those that generation needs."""
        return {name: value for name, value in asdict(self).items() if name != "steps"}

    def told(self) -> str:
        guidance = f"guidance {self.text_guidance:g} by text and {self.difficulty_guidance:g} by difficulty"
        return f"{self.steps} steps, LoRA scale {self.lora_scale:g}, {guidance}"


def check_unseen(images: int, of_run: str = "") -> None:
    """Raises UsageError where so many unseen images are too few to judge a strength by. of_run: flags that name it."""
    if images < FEWEST:
        raise UsageError(
            f"{images} real images are kept from fine-tuning, and judging its strength takes {FEWEST}",
            "hold out more images of dcdm score (--test-fraction, of which --judge-fraction is the judge's), add some, "
            f"or set the number of steps yourself: dcdm finetune --strength 200{of_run}",
        )


@dataclass(frozen=True)
class RealFeatures:
    """train float32 [N, D]: what the adapter learns from; unseen float32 [M, D]: what it does not see, of labels
    int64 [M] in [0, classes).

    Raises UsageError with fewer than FEWEST unseen images.
    """

    train: np.ndarray
    unseen: np.ndarray
    labels: np.ndarray
    classes: int

    def __post_init__(self) -> None:
        check_unseen(len(self.unseen))

    @cached_property
    def limit(self) -> float:
        """Distance to the nearest training image that all but `CLOSE` of the unseen images keep."""
        return float(np.quantile(self.to_train(self.unseen), CLOSE))

    @cached_property
    def head(self) -> Head:
        """Knows the classes from the unseen images alone."""
        return fit_head(
            Lesson(self.unseen, self.labels, [str(row) for row in range(len(self.labels))], self.classes), 0
        )

    def to_train(self, features: np.ndarray) -> np.ndarray:
        """float [N]: distance of each image to the nearest training image."""
        return NearestNeighbors(n_neighbors=1).fit(self.train).kneighbors(features)[0][:, 0]


@dataclass(frozen=True)
class Drawn:
    """Images of one point. features float32 [N, D]; label int64 [N]: what they should show; requested, realised float
    [N]; agrees bool [N]: the scorer gives the image its label; error: mean miss of reachable targets after calibration,
    NaN = could not be fitted; seconds of drawing, scoring and looking at them."""

    features: np.ndarray
    label: np.ndarray
    requested: np.ndarray
    realised: np.ndarray
    agrees: np.ndarray
    reachable: tuple[float, float]
    error: float
    seconds: float


def measure_point(drawn: Drawn, real: RealFeatures) -> dict[str, float]:
    """worth (see `worth`), labels (share of images whose label the head sees), difficulty (mean), agreement (the
    scorer's), copies, density, coverage, low, high (reachable difficulty), correlation (requested with realised, rank),
    error, seconds_per_image. Compare points of equal numbers of images only: coverage grows with them."""
    sees = real.head.logits(drawn.features).argmax(1) == drawn.label
    hard = np.nan_to_num(drawn.realised)  # what could not be scored is worth nothing
    made, unseen = (torch.from_numpy(np.asarray(part, np.float64)) for part in (drawn.features, real.unseen))
    density, coverage = density_coverage(made, unseen)
    values = {
        "worth": (sees * hard).mean(),
        "labels": sees.mean(),
        "difficulty": hard.mean(),
        "agreement": drawn.agrees.mean(),
        "copies": (real.to_train(drawn.features) < real.limit).mean(),
        "density": density,
        "coverage": coverage,
        "low": drawn.reachable[0],
        "high": drawn.reachable[1],
        "correlation": _rank_correlation(drawn.requested, drawn.realised),
        "error": drawn.error,
        "seconds_per_image": drawn.seconds / max(1, len(drawn.features)),
    }
    return {name: round(float(value), 4) for name, value in values.items()}


def worth(measured: dict[str, float]) -> float:
    """The rule's score of a point: the mean difficulty of its images, those whose label the head does not see counting
    0. Higher is better: hard and right.

    docs/results/digits.md has its rank correlation with the accuracy of classifiers trained on the images, and that of
    the measures that were tried instead (coverage of unseen images among them, which points the other way).
    """
    return measured["worth"]


@dataclass(frozen=True)
class StrengthChoice:
    """index of the point; reason: one sentence; usable: False when every point copies or loses its label."""

    index: int
    reason: str
    usable: bool


def choose(
    points: Sequence[Point], table: Sequence[dict[str, float]], most_copies: float, least: float
) -> StrengthChoice:
    """The point of the highest `worth` among those that copy at most `most_copies` of their images and keep at least
    `least` of their labels; of equal ones the cheaper. Without such a point, the one that copies least."""
    good = [i for i, row in enumerate(table) if row["copies"] <= most_copies and row["labels"] >= least]
    if not good:
        index = min(range(len(table)), key=lambda i: (table[i]["copies"], -table[i]["labels"]))
        reason = (
            f"every point copies more than {most_copies:.0%} of its images from the training set or keeps less than "
            f"{least:.0%} of its labels; {points[index].told()} copies least ({table[index]['copies']:.1%})"
        )
        return StrengthChoice(index, reason, usable=False)
    index = max(good, key=lambda i: (worth(table[i]), -table[i]["seconds_per_image"]))
    row = table[index]
    reason = (
        f"{points[index].told()}: its images are {row['difficulty']:.2f} hard on average, {row['labels']:.0%} show "
        f"their label, {row['copies']:.1%} are copies ({len(good)} of {len(table)} points qualify)"
    )
    return StrengthChoice(index, reason, usable=True)


def steers(correlation: float, images: int) -> bool:
    """Whether difficulty follows the request beyond chance: the lower end of the rank correlation's 95 % interval
    (Fisher's transformation) lies above 0. images: of which it is, at least 4."""
    # below 1, where atanh is infinite
    low = math.atanh(min(correlation, 1 - 1e-9)) - NORMAL_95 / math.sqrt(images - 3)
    return low > 0


def without_idle_guidance(point: Point, measured: dict[str, float], images: int) -> Point:
    """With one scale for text and difficulty where guidance by difficulty steers nothing: it costs a network call of
    three, and what it amplifies is then noise of the encoder's. Difficulty is had by choosing among draws."""
    if point.difficulty_guidance == point.text_guidance or steers(measured["correlation"], images):
        return point
    return replace(point, difficulty_guidance=point.text_guidance)


def _rank_correlation(requested: np.ndarray, realised: np.ndarray) -> float:
    if len(np.unique(requested)) < 2 or len(np.unique(realised)) < 2:  # nothing follows the request: not steered at all
        return 0.0
    return float(np.asarray(spearmanr(requested, realised)[0]))
