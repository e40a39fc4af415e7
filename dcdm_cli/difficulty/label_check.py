"""Whether an image shows its label, asked of a classifier that knows the classes from elsewhere. Not from the paper.

The scorer learned from the very images that the generator did, and difficulty is what it says: at the hard end it
cannot tell a hard image from a lost label. A folder holds what it takes to ask the second classifier
again, in any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dcdm_cli.difficulty.checker import DIGITS, open_digits_checker
from dcdm_cli.difficulty.classifier import OnTrunk, preprocessing_of
from dcdm_cli.difficulty.features import Extractor
from dcdm_cli.difficulty.own_classifier import Reordered, align_classes, load_own_classifier
from dcdm_cli.difficulty.scorer import Scorer, save_feature_scorer, save_own_scorer
from dcdm_cli.difficulty.verdict import Checker
from dcdm_cli.difficulty.zero_shot import open_zero_shot
from dcdm_cli.errors import MismatchError
from dcdm_cli.files import atomic_folder, write_json
from dcdm_cli.gate import ClassNames, Text, Word, read_document
from dcdm_cli.run.settings import ClassifierConfig

CLIP, STORED = "clip", "scorer"
DESCRIPTION = "checker.json"
AGAIN = "remove the folder: it is made again"


@dataclass(frozen=True)
class _Description:
    """checker.json. class_names: the run's. captions, model, revision: of CLIP, a caption per class."""

    kind: Literal["digits", "scorer", "clip"]
    class_names: ClassNames
    captions: tuple[Text, ...] = ()
    model: Word = ""
    revision: Word | None = None


def open_label_check(folder: Path, device: torch.device | str = "cpu") -> Checker:
    """What one of the `save_..._check` functions has written, as a question: images uint8 [B, H, W, 3] and labels int
    [B] of the run's classes -> bool [B]. Classes that the run has not compete too, and may win.

    Raises NotFoundError, MismatchError and what loading the classifier raises.
    """
    scorer = _opened(folder, torch.device(device))
    # only which class is the likeliest counts, so that no check has to know its temperature
    return lambda images, labels: scorer.measure(images, labels).predicted == labels


def save_digits_check(folder: Path, class_names: Sequence[str]) -> None:
    """The packaged classifier. Raises MismatchError for classes other than "0" to "9"."""
    _digits_order(class_names)
    # keep: another job may have made the same check meanwhile, and somebody may be reading that one
    with atomic_folder(folder, keep=True) as part:
        _describe(part, DIGITS, class_names)


def save_features_check(folder: Path, model: OnTrunk, class_names: Sequence[str], extractor: Extractor) -> None:
    """model: a head on this extractor's network."""
    with atomic_folder(folder, keep=True) as part:
        save_feature_scorer(part / STORED, [model], class_names, 1.0, extractor)
        _describe(part, STORED, class_names)


def save_own_check(folder: Path, file: Path, class_names: Sequence[str], config: ClassifierConfig) -> None:
    """The user's own .onnx or .safetensors file. config: gives `model` of a .safetensors file without sidecar. Raises
    what `load_own_classifier` raises."""
    own = load_own_classifier(file, class_names, config)
    with atomic_folder(folder, keep=True) as part:
        save_own_scorer(part / STORED, own, 1.0)
        _describe(part, STORED, class_names)


def save_clip_check(folder: Path, model: str, captions: Sequence[str], class_names: Sequence[str]) -> None:
    """The texts, and where CLIP is: not its weights. Raises what `open_zero_shot` raises."""
    place = str(Path(model).absolute()) if Path(model).is_dir() else model
    # opened only to learn that it can be, and the commit: whoever asks later gets these very weights
    _, _, revision = open_zero_shot(place, captions)
    with atomic_folder(folder, keep=True) as part:
        _describe(part, CLIP, class_names, captions=list(captions), model=place, revision=revision)


def _describe(folder: Path, kind: str, class_names: Sequence[str], **more: object) -> None:
    write_json(folder / DESCRIPTION, {"kind": kind, "class_names": list(class_names), **more})


def _opened(folder: Path, device: torch.device) -> Scorer:
    """Any of them as a scorer of one model: the run's classes first, then those that it knows besides."""
    said = read_document(folder / DESCRIPTION, _Description, AGAIN)
    if said.kind == STORED:
        return Scorer.load(folder / STORED, device)
    if said.kind == CLIP:
        network, preprocessing, _ = open_zero_shot(said.model, said.captions, device, revision=said.revision)
        return Scorer((network,), said.class_names, preprocessing, 1.0, device)
    stored = open_digits_checker(str(device))
    order = _digits_order(said.class_names)
    # the run's classes may be some of the ten, or stand in another order
    model: nn.Module = Reordered(stored.model, order).to(device).eval()
    names = tuple(stored.class_names[position] for position in order)
    return Scorer((model,), names, preprocessing_of(stored.model, stored.config), stored.temperature, device)


def _digits_order(class_names: Sequence[str]) -> list[int]:
    try:
        return align_classes([str(digit) for digit in range(10)], class_names)
    except MismatchError as error:
        raise MismatchError(
            f"the packaged digits classifier cannot check these labels: {error.message}",
            "check otherwise: --check clip, --check features, or --check FILE of your own classifier",
        ) from error
