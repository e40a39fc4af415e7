"""Whether a classifier knows more than chance: stated wherever one is used. Not from the paper.

A classifier that guesses gives every image a difficulty too, and that difficulty looks like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dcdm_cli.errors import NumericalError

WEAK = 0.5  # of the way from chance to always right, below which a classifier's opinion is thin
FEWEST = 30  # images, below which chance cannot be told from knowledge
EXCHANGED = 5  # images of a class, taken for one other, below which two classes are not said to be exchanged
MOST_NAMED = 3  # pairs of classes in a sentence
DOUBT = 1.645  # standard errors above chance; less happens to one guesser in twenty
SCORER, JUDGE, DOWNSTREAM = "scorer", "judge", "downstream"
# in the standing of a classifier of which it is not known whether it learned from what it was asked about
SEEN = "seen"
FIGURES = ("accuracy", "chance", "prior", "asked")  # of a standing, as the message says them
MEANS = {
    SCORER: "difficulties from it say little",
    JUDGE: "whether images keep their label is not known",
    DOWNSTREAM: "arms cannot be told apart by it",
}
LOOK = {
    SCORER: "is the class map in another order (--class-map, or class_names beside a classifier of your own), or are "
    "their labels exchanged",
    JUDGE: "are their labels exchanged in one of the splits",
}
REMEDIES = {
    SCORER: "dcdm score --method auto or --pretrained, a larger --image-size, more --steps, --fit pad where images "
    "are cropped; and look whether labels and --class-map belong to these images",
    JUDGE: "--set judge.method=auto, more judge.steps, or more images in the judge split",
    DOWNSTREAM: "--set downstream.method=features, downstream.pretrained=true, a larger downstream.image_size or more "
    "downstream.steps",
}


def competence(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> dict[str, Any]:
    """predicted, labels: int [N], -1 = no answer, not known; of images that the classifier did not learn from. As
    `competence_of`, and `exchanged` where there are such: pairs of classes that are each mostly taken for the other.
    names: of the classes, by which those are called."""
    known = (labels >= 0) & (predicted >= 0)
    asked, predicted, labels = int(known.sum()), predicted[known], labels[known]
    if not asked:
        return competence_of(0, 0.0, 0.0, 0.0)
    right, guessed = float((predicted == labels).mean()), chance_of(predicted, labels)
    pairs = exchanged(predicted, labels, names)
    return {**competence_of(asked, right, guessed, prior_of(labels)), **({"exchanged": pairs} if pairs else {})}


def exchanged(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """Pairs of classes of which more than half of each, `EXCHANGED` images at least, are taken for the other: no
    classifier errs so by itself. predicted, labels: int [N] in [0, C)."""
    width = int(max(predicted.max(), labels.max())) + 1
    of = np.bincount(labels, minlength=width)
    codes, counts = np.unique(labels * width + predicted, return_counts=True)
    truth, answer = codes // width, codes % width
    # more than half, so that a class has one such answer at most, and `taken` loses none
    mostly = (truth != answer) & (2 * counts > of[truth]) & (counts >= EXCHANGED)
    taken: dict[int, int] = dict(zip(truth[mostly].tolist(), answer[mostly].tolist(), strict=True))
    named = {one: other for one, other in taken.items() if max(one, other) < len(names)}
    return [
        [str(names[one]), str(names[other])] for one, other in named.items() if one < other and named.get(other) == one
    ]


def exchanged_sentence(who: str, found: Mapping[str, Any]) -> str:
    """For people; "" where no classes are exchanged. who: one of `LOOK`."""
    pairs = found.get("exchanged") or ()
    if not pairs:
        return ""
    listed = ", ".join(f"{one!r} and {other!r}" for one, other in pairs[:MOST_NAMED])
    more = f" and {len(pairs) - MOST_NAMED} more pairs" if len(pairs) > MOST_NAMED else ""
    return f"The {who} takes most images of two classes each for the other, {listed}{more}: {LOOK[who]}?"


def chance_of(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy of somebody who gives the same answers as often, but to any image. int [N] in [0, C)."""
    classes = int(max(predicted.max(), labels.max())) + 1
    answers, truth = np.bincount(predicted, minlength=classes), np.bincount(labels, minlength=classes)
    return float(answers @ truth) / len(labels) ** 2


def prior_of(labels: np.ndarray) -> float:
    """The accuracy of somebody who always names the largest class. labels: int [N] in [0, C)."""
    return float(np.bincount(labels).max()) / len(labels)


def competence_of(asked: int, accuracy: float, chance: float, prior: float) -> dict[str, Any]:
    """asked: images. accuracy, chance, prior: shares. knows: how far accuracy is on the way from chance to 1. verdict:
    good, weak (less than `WEAK` of that way), chance (no more than a guesser reaches by luck), or cannot tell (of fewer
    than `FEWEST` images, or where guessing is always right)."""
    shares = {"accuracy": accuracy, "chance": chance, "prior": prior}
    if not asked or chance >= 1:
        return {"asked": asked, **dict.fromkeys(shares), "knows": None, "verdict": "cannot tell"}
    knows = (accuracy - chance) / (1 - chance)
    verdict = "good" if knows >= WEAK else "weak"
    if accuracy - chance <= DOUBT * np.sqrt(chance * (1 - chance) / asked):
        verdict = "chance"
    # last: of so few images neither knowledge nor chance is told
    if asked < FEWEST:
        verdict = "cannot tell"
    rounded = {name: round(value, 4) for name, value in shares.items()}
    return {"asked": asked, **rounded, "knows": round(knows, 4), "verdict": verdict}


def maybe_seen(found: Mapping[str, Any]) -> dict[str, Any]:
    """The standing of a classifier that somebody else has trained, on who knows which images."""
    return {**found, SEEN: "not known"}


def competence_sentence(who: str, found: Mapping[str, Any]) -> str:
    """For people. who: one of `MEANS`."""
    names = "downstream classifier" if who == DOWNSTREAM else who
    if found["accuracy"] is None:
        return f"The {names} was asked about too few images to tell what it knows."
    accuracy, chance, prior = (f"{100 * found[name]:.1f} %" for name in ("accuracy", "chance", "prior"))
    learned = " that it did not learn from"
    if SEEN in found:
        learned = " (whether it learned from them is not known: images that it has seen score too easy)"
    return (
        f"The {names} names {accuracy} of {found['asked']} images right{learned}; guessing gets "
        f"{chance}, always naming the largest class {prior}."
    )


def guard(who: str, found: Mapping[str, Any], at_chance: str, warn: Callable[[str], None]) -> None:
    """Warns of a weak classifier, and of one that exchanges classes. Raises NumericalError for one at chance, unless
    `at_chance` is warn."""
    # whatever the verdict: among many classes two that are exchanged hardly show in the accuracy
    if said := exchanged_sentence(who, found):
        warn(said)
    if found["verdict"] not in ("weak", "chance"):
        return
    what = "no better than guessing" if found["verdict"] == "chance" else "not half of the way from guessing to all"
    said = f"{competence_sentence(who, found)[:-1]}: {what}, so {MEANS[who]}"
    section = "score" if who == SCORER else who
    if found["verdict"] == "chance" and at_chance == "stop":
        hint = f"{REMEDIES[who]}; to go on as it is: --set {section}.at_chance=warn"
        raise NumericalError(said, hint, figures={name: found[name] for name in FIGURES})
    warn(f"{said}; try {REMEDIES[who]}")
