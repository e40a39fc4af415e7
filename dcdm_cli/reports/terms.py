"""What the words of a report mean: each is explained once, where it first stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TERMS = {
    "out-of-fold": "scored by a classifier that was not trained on that image",
    "difficulty": "1 minus the probability that the scorer gives an image's true class: 0 easy, 1 hard",
    "scorer": "the classifier that measures difficulty",
    "judge": "a classifier trained on images that neither scorer nor generator saw; it says whether labels are kept",
    "label agreement": "share of images that the judge gives the label they were made for",
    "target": "the difficulty that was wanted",
    "requested": "the difficulty that the generator was told, so that the target comes out",
    "realised": "the difficulty that the scorer finds in the finished images",
    "calibration": "what to request so that a target comes out, fitted to images made for it",
    "label frontier": "label agreement over difficulty: where generated images fall below equally hard real ones, they "
    "are wrong rather than hard",
    "rank correlation": "Spearman's: 1 when images come out in exactly the order of their targets, 0 when in none",
    "paired seed": "both arms trained from the same random start and order, so that chance hits them alike",
    "seed": "a number that fixes all that is random; another seed is another try",
    "arm": "one training set of the comparison: real images alone, or with others",
    "upsampled": "real images shown more often, as often as the other arms show theirs",
    "augmented": "real images, changed at random (crops, flips, colours)",
    "dcdm": "real images and generated ones of chosen difficulty",
    "plain LoRA": "generated images without difficulty",
    "95 % interval": "the true value lies inside in 95 of 100 such intervals",
    "p": "how often chance alone would give such a difference",
    "points of accuracy": "differences of accuracy in percentage points; in brackets their 95 % interval",
    "Fréchet": "distance between generated and real images as a network sees them, 0 = none",
    "KID": "kernel distance between generated and real images, in thousandths, 0 = none",
    "precision": "share of generated images that lie among real ones",
    "recall": "share of real images that lie among generated ones",
    "density": "how many real images lie near a generated one, against what real ones have",
    "coverage": "share of real images with a generated one near them",
    "held-out": "images that nothing was trained on",
    "LoRA": "the small matrices that fine-tuning adds to the base model",
    "guidance": "how strongly each sampling step is pulled towards text and difficulty",
    "scale": "strength at which the LoRA acts; 1 = as trained",
    "GPU-hour": "one GPU for one hour",
    "CPU-hours": "hours of work on processors, one device each",
    "copies": "generated images nearer to a training image than 99 % of unseen real ones are",
    "reach": "mean difficulties that can be had",
    "atlas": "class by difficulty, in pictures",
    "sampler": "the method that turns noise into an image, step by step",
}  # in the order in which they are looked for: longer ones before words they contain
_PATTERNS = {term: re.compile(rf"(?<![\w-]){re.escape(term)}(?:s|es)?(?![\w-])", re.IGNORECASE) for term in TERMS}
_PATTERNS["p"] = re.compile(r"(?<![\w-])p(?: [=<]|$)")  # alone it heads a column


@dataclass
class Explained:
    """What a page has explained already."""

    known: set[str] = field(default_factory=set)

    def first(self, *texts: str) -> list[tuple[str, str]]:
        """(term, explanation) of the terms that stand in these texts, or in an explanation of those, and in none
        before: in the order of the page, which its template follows."""
        found: list[str] = []
        waiting = list(texts)
        while waiting:
            text = waiting.pop(0)
            new = [term for term, pattern in _PATTERNS.items() if term not in self.known and pattern.search(text)]
            self.known.update(new)
            found += new
            waiting += [TERMS[term] for term in new]
        return [(term, TERMS[term]) for term in found]
