"""Multinomial logistic regression on frozen features: small heads, fitted in seconds. Not from the paper.

Features are standardised by the rows a head learns from; that is folded into its weights afterwards, so that a head is
a plain linear layer. The penalty (1 / C in scikit-learn's terms: half of it times the squared weights is added to the
summed cross-entropy) is chosen by folds within those same rows: what a head is asked about has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dcdm_cli.arrays import evenly
from dcdm_cli.difficulty.crossfit import fold_of
from dcdm_cli.difficulty.scores import fit_temperature, loss
from dcdm_cli.errors import UsageError

PENALTIES = (3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)  # strong first: each starts from the one before
USUAL = 300.0  # where there is too little to choose by
INNER_FOLDS, INNER_ROWS = 3, 6000
FIT_ROWS = 50_000  # images one head learns from; more change little, and memory is bounded
ITERATIONS, INNER_ITERATIONS = 100, 40  # of L-BFGS; inner ones start from the solution for a stronger penalty
FLOOR = 0.1  # of the features' root mean square spread: none is taken to vary less
NEVER = -1e4  # logit of a class without a single image to learn from


@dataclass(frozen=True)
class Head:
    """Logits of features: weight float32 [C, D], bias float32 [C]. penalty: that it was fitted with."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 [N, D] -> float32 [N, C]"""
        return features @ self.weight.T + self.bias

    def layer(self, device: torch.device | str = "cpu") -> nn.Linear:
        return linear_layer(torch.from_numpy(self.weight), torch.from_numpy(self.bias)).to(device)


def linear_layer(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.eval().requires_grad_(False)


@dataclass(frozen=True)
class Lesson:
    """What a head learns from. features: float32 [N, D]; labels: int64 [N] in [0, classes); identities: [N], equal for
    copies of an image."""

    features: np.ndarray
    labels: np.ndarray
    identities: Sequence[str]
    classes: int


def fit_head(lesson: Lesson, seed: int, device: torch.device | str = "cpu") -> Head:
    """The head with the penalty that inner folds choose. seed: of those. Raises UsageError for fewer than 2 images."""
    if len(lesson.labels) < 2:
        raise UsageError(
            f"a classifier needs at least 2 training images, there are {len(lesson.labels)}",
            "add images to the source and read it again: dcdm score SOURCE",
        )
    penalty, temperature = chosen_penalty(lesson, seed, device)
    head = fit_with(lesson, penalty, device)
    # a class that was never seen stays out of the question at any temperature
    bias = np.where(head.bias == NEVER, NEVER, head.bias / temperature)
    return Head(head.weight / np.float32(temperature), bias.astype(np.float32), penalty)


def chosen_penalty(lesson: Lesson, seed: int, device: torch.device | str = "cpu") -> tuple[float, float]:
    """(penalty, temperature) with the smallest cross-entropy over inner folds, of `INNER_ROWS` images at most;
    (`USUAL`, 1) where no class has images in two folds. The temperature is the one that the penalty's heads need there:
    penalties differ between the heads of few images, and their logits have to mean the same."""
    rows = evenly(len(lesson.labels), INNER_ROWS)
    labels = lesson.labels[rows]
    try:
        fold = fold_of([lesson.identities[int(row)] for row in rows], labels, INNER_FOLDS, seed)
    except UsageError:
        return USUAL, 1.0
    part = Lesson(lesson.features[rows], labels, (), lesson.classes)
    parts = [_Part(part, fold != number, device) for number in range(int(fold.max()) + 1)]
    asked = np.concatenate([part.labels for part in parts])
    best, chosen = np.inf, (USUAL, 1.0)
    for penalty in PENALTIES:  # all of them: of few images the loss has more than one valley
        logits = np.concatenate([part.held_out(penalty) for part in parts])
        temperature = fit_temperature(logits, asked)
        if len(asked) and (value := float(loss(logits / temperature, asked).mean())) < best:
            best, chosen = value, (penalty, temperature)
    return chosen


def fit_with(lesson: Lesson, penalty: float, device: torch.device | str = "cpu") -> Head:
    """The head with this penalty. A class that no image has gets `NEVER` as logit."""
    present, targets = np.unique(lesson.labels, return_inverse=True)
    problem = _Problem(lesson.features, targets, len(present), device)
    solution = problem.solve(penalty, problem.start())
    weight = np.zeros((lesson.classes, lesson.features.shape[1]), np.float32)
    # finite, as an infinite logit would count as no answer at all
    bias = np.full(lesson.classes, NEVER, np.float32)
    weight[present], bias[present] = problem.plain(solution)
    return Head(weight, bias, penalty)


RANK = 1e-10  # of the largest eigenvalue, below which a direction has none of the rows


class _Problem:
    """Rows to learn from, standardised, on the device. A solution is float32 [R + 1, C], biases last: weights of the
    best head are sums of rows, so that of fewer rows than features (R < D) only directions that rows have are looked
    at."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, classes: int, device: torch.device | str) -> None:
        rows = torch.from_numpy(features).to(device)
        self.mean, spread = rows.mean(0), rows.std(0, correction=0)
        # A feature that hardly moves in these rows may move in others: blown up to unit spread, it would decide there.
        self.spread = spread.clamp_min(max(FLOOR * float(spread.square().mean().sqrt()), 1e-6))
        self.rows, self.directions = _turned((rows - self.mean) / self.spread)
        self.targets, self.classes = torch.from_numpy(targets).to(device), classes

    def start(self) -> torch.Tensor:
        return torch.zeros(self.rows.shape[1] + 1, self.classes, device=self.rows.device)

    def solve(self, penalty: float, start: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
        """By L-BFGS; the loss is convex."""
        solution = start.clone().requires_grad_()
        # cross_entropy is a mean over the rows, and the penalty is of their sum
        scale = penalty / (2 * len(self.targets))
        optimiser = torch.optim.LBFGS(
            [solution], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def step() -> torch.Tensor:
            optimiser.zero_grad()
            value = cross_entropy(self.rows @ solution[:-1] + solution[-1], self.targets)
            # biases cost nothing, as in scikit-learn's
            value = value + scale * solution[:-1].square().sum()
            value.backward()
            return value

        optimiser.step(step)  # pyright: ignore[reportArgumentType]
        return solution.detach()

    def weights(self, solution: torch.Tensor) -> torch.Tensor:
        """float32 [D, C], of standardised features."""
        return solution[:-1] if self.directions is None else self.directions @ solution[:-1]

    def plain(self, solution: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """weight [C, D] and bias [C] for features as they are."""
        weight = (self.weights(solution) / self.spread[:, None]).T
        bias = solution[-1] - weight @ self.mean
        return weight.cpu().numpy(), bias.cpu().numpy()


def _turned(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float32 [N, D] -> the same rows in R directions at right angles, [N, R], and those, [D, R]; as they are, and
    None, where there are as many rows as features."""
    if len(rows) >= rows.shape[1]:
        return rows, None
    exact = rows.double().cpu()  # squares of what float32 can tell apart need more; not every device has it
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    # tiny: of rows that are all equal no direction counts
    there = values > RANK * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    length = values[there].sqrt()
    turned, directions = vectors[:, there] * length, exact.T @ (vectors[:, there] / length)
    return turned.float().to(rows.device), directions.float().to(rows.device)


class _Part:
    """One inner fold: learns from the rest, and is asked about its own images, of labels int [n]."""

    def __init__(self, lesson: Lesson, learnt: np.ndarray, device: torch.device | str) -> None:
        self.present, targets = np.unique(lesson.labels[learnt], return_inverse=True)
        self.problem, self.classes = (
            _Problem(lesson.features[learnt], targets, len(self.present), device),
            lesson.classes,
        )
        # a class that it never saw costs `NEVER` with any penalty, which would drown what tells them apart
        asked = ~learnt & np.isin(lesson.labels, self.present)
        rows = torch.from_numpy(lesson.features[asked]).to(device)
        self.rows, self.labels = (rows - self.problem.mean) / self.problem.spread, lesson.labels[asked]
        self.solution = self.problem.start()

    def held_out(self, penalty: float) -> np.ndarray:
        """Logits float32 [n, classes]. Penalties come strongest first."""
        self.solution = self.problem.solve(penalty, self.solution, INNER_ITERATIONS)
        logits = np.full((len(self.labels), self.classes), NEVER, np.float32)
        logits[:, self.present] = (self.rows @ self.problem.weights(self.solution) + self.solution[-1]).cpu().numpy()
        return logits
