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
    "scorer agrees": "share of images that the scorer gives the label they were made for",
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
    "accuracy": "share of images that a classifier names right",
    "log-loss": "mean of -ln of the probability that a classifier gives the true class: 0 = always sure and right, "
    "less is better",
    "nats": "what log-loss is counted in: natural logarithms",
    "harder half": "accuracy on the half of the test images that the scorer finds harder",
    "verdict": "of a comparison: better or worse where interval and p leave no room for chance, points to it where the "
    "interval alone does; of a classifier: good, weak (less than half of the way from guessing to all right), chance",
    "phi": "correlation of being wrong: 0 = the errors have nothing to do with each other, 1 = they are on the same "
    "images",
    "both by chance": "share that both would get wrong if their errors had nothing to do with each other",
    "same class": "of what both get wrong, the share that both take for the same class",
    "guessing": "the accuracy of the same answers, given as often but to any image",
    "largest class": "the accuracy of always naming the class with the most images",
    "near-duplicate": "an image so near to another that both show the same picture: resized, mirrored, a bit brighter",
    "thumbnail": "an image shrunk to 16 x 16 pixels",
    "packaged": "the feature network that comes with dcdm, trained on ImageNet",
    "closer than real": "share of generated images nearer to a training image than 99 % of the held-out real ones are",
    "loading": "until the first image or step: reading models, warming up, building engines",
    "adherence": "how well the difficulty that comes out follows the one that was wanted",
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
    "parity": "how near an exported network's output is to PyTorch's in float32",
    "atlas": "class by difficulty, in pictures",
    "sampler": "the method that turns noise into an image, step by step",
}  # in the order in which they are looked for: longer ones before words they contain
ALIASES = {
    "plain": "plain LoRA",
    "reached": "reach",
    "reachable": "reach",
    "copy": "copies",
    "real agree": "label agreement",
    "generated agree": "label agreement",
    "scorer errs": "scorer",
    "judge errs": "judge",
    "uncalibrated": "calibration",
    "rank corr.": "rank correlation",
    "near-copies": "near-duplicate",
}  # other words for a term, wherever they stand
HEADS = {
    "points": TERMS["points of accuracy"],
    "covers": TERMS["coverage"],
    "cover": TERMS["coverage"],
    "rank": TERMS["rank correlation"],
    "label": "share of images whose label shows",
    "label kept": TERMS["label agreement"],
    "hard": "mean difficulty",
    "worth": "mean difficulty, with images whose label is lost counting 0",
    "guide": "guidance by text / by difficulty",
    "ms": "milliseconds per image",
    "n": "how many images were compared",
    "n / of": "images compared / reference images",
    "extra": "images beside the real training ones",
    "extra images": "images beside the real training ones",
    "made in": "time that making the extra images took",
    "seeds to tell": "how many seeds would decide, if difference and spread stay as they are",
    "mean error": "mean distance between target and realised difficulty",
    "both": "share that both get wrong",
    "its best": "the accuracy of its best number of images",
    "ours there": "our accuracy with the fewest images that reach that",
    "with images": "with so many extra images",
    "share of images": "our number of images, as a share of the control's",
    "share of time": "our time of generating, as a share of the control's",
    "of all time": "the same with all that comes before the first image",
    "control": "the training set that ours is compared with",
    "steps": "optimiser steps of fine-tuning",
    "device hours": "hours of work of a GPU or of a CPU",
    "memory": "the most that was in use at a time",
    "energy": "as the GPU's own counter says",
    "repeat training": "generated images that repeat a training image",
    "repeat held-out": "generated images that repeat a held-out one",
    "held-out repeat training": "held-out real images that repeat a training image: what the data set itself has",
}  # words that are a term only where they head a column
_ANYWHERE = {**TERMS, **{word: TERMS[term] for word, term in ALIASES.items()}}
_PATTERNS = {
    **{word: re.compile(rf"(?<![\w-]){re.escape(word)}(?:s|es)?(?![\w-])", re.IGNORECASE) for word in _ANYWHERE},
    **{word: re.compile(rf"^{re.escape(word)}$") for word in HEADS},
}
_PATTERNS["p"] = re.compile(r"(?<![\w-])p(?: [=<]|$)")  # alone it heads a column
_TEXTS = {**_ANYWHERE, **HEADS}


@dataclass
class Explained:
    """What a page has explained already. known: explanations, which several words may share."""

    known: set[str] = field(default_factory=set)

    def first(self, *texts: str) -> list[tuple[str, str]]:
        """(word, explanation) of the terms that stand in these texts, or in an explanation of those, and in none
        before: in the order of the page, which its template follows."""
        found: list[str] = []
        waiting = list(texts)
        while waiting:
            text = waiting.pop(0)
            new = [
                word for word, pattern in _PATTERNS.items() if _TEXTS[word] not in self.known and pattern.search(text)
            ]
            new = list({_TEXTS[word]: word for word in reversed(new)}.values())[::-1]  # of two words for one, the first
            self.known.update(_TEXTS[word] for word in new)
            found += new
            waiting += [_TEXTS[word] for word in new]
        return [(word, _TEXTS[word]) for word in found]
