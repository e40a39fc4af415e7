"""Whether two classifiers err on the same images: a judge that errs with the scorer proves little.

Not from the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from dcdm_cli.arrays import rounded

CHANCE = 0.05  # of seeing so many common errors if the two erred independently, below which they are called related


def error_agreement(scorer: np.ndarray, judge: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """scorer, judge: predicted classes, int [N], -1 = no answer; labels: int [N], -1 = unknown; of real images that
    neither has learnt from (the scorer's out-of-fold predictions are such).

    n: images with a label and two answers. scorer_error, judge_error: shares that are wrong. both_wrong: of all, and
    expected: what it would be if the two erred independently. same_class: of the common errors, the share with the same
    wrong class. phi: correlation of being wrong, in [-1, 1]. p: of so many common errors by chance (Fisher, one-sided).
    verdict: related, apart, or cannot tell. None where there is nothing to divide by.
    """
    known = (labels >= 0) & (scorer >= 0) & (judge >= 0)
    n, first, second = int(known.sum()), (scorer != labels)[known], (judge != labels)[known]
    if not n:
        names = ("scorer_error", "judge_error", "both_wrong", "expected", "same_class", "phi", "p")
        return {"n": 0, **dict.fromkeys(names), "verdict": "cannot tell"}
    both = first & second
    same = (scorer == judge)[known][both]
    # who is never wrong, or always, errs with nobody in particular
    varied = 0 < first.sum() < n and 0 < second.sum() < n
    counts = [[both.sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    p = float(stats.fisher_exact(counts, alternative="greater")[1]) if varied else None  # pyright: ignore[reportArgumentType, reportIndexIssue]
    return {
        "n": n,
        "scorer_error": rounded(first.mean()),
        "judge_error": rounded(second.mean()),
        "both_wrong": rounded(both.mean()),
        "expected": rounded(first.mean() * second.mean()),
        "same_class": rounded(same.mean()) if len(same) else None,
        "phi": rounded(np.corrcoef(first, second)[0, 1]) if varied else None,
        "p": None if p is None else float(f"{p:.3g}"),
        "verdict": "cannot tell" if p is None else "related" if p < CHANCE else "apart",
    }


def agreement_sentence(found: dict[str, Any]) -> str:
    """For people."""
    if found["p"] is None:
        return f"Scorer and judge: too few errors on {found['n']} real images to tell whether they err together."
    shares = f"{100 * found['both_wrong']:.1f} % of {found['n']} real images, {100 * found['expected']:.1f} % by chance"
    if found["verdict"] == "apart":
        return f"Scorer and judge err on the same {shares}: they may be taken for independent."
    return f"Scorer and judge err on the same {shares}: the judge shares the scorer's blind spots, and proves less."
