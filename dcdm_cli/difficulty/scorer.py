"""The scorer in the run folder: what measures the difficulty of generated images.

It is the fold models of the cross-fit (networks, or heads on one extractor of features, which then looks at an image
once for all of them), or the one classifier a user brought, behind one question: how hard is this
image for the classifiers that scored the real ones? Safetensors (or the user's ONNX file) and JSON, no pickles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from dcdm_cli.difficulty.classifier import (
    WEIGHTS,
    Images,
    OnTrunk,
    Preprocessing,
    Temperature,
    load_classifier,
    load_weights,
    logits_of,
    preprocessing_of,
    save_classifier,
)
from dcdm_cli.difficulty.crossfit import CrossFit
from dcdm_cli.difficulty.features import Extractor, open_extractor, save_extractor
from dcdm_cli.difficulty.own_classifier import OwnClassifier, copy_own_classifier, load_own_classifier
from dcdm_cli.difficulty.packaged import PACKAGED
from dcdm_cli.difficulty.scores import mean_log_probs, score_columns
from dcdm_cli.difficulty.verdict import Verdict
from dcdm_cli.errors import MismatchError, NotFoundError, NumericalError
from dcdm_cli.files import atomic_folder, write_json
from dcdm_cli.gate import ClassNames, Word, inside, read_document
from dcdm_cli.run.progress import Progress
from dcdm_cli.run.settings import ClassifierConfig

DESCRIPTION = "scorer.json"
AGAIN = "make it again: dcdm score --force"
SOME = 8  # images; of fewer all may be odd, of so many without one finite answer the scorer is what is broken
EXTRACTOR = "features"  # folder of a network that is not the packaged one
_NO_SETTINGS = ClassifierConfig.model_validate({})  # a copied classifier has a full sidecar


@dataclass(frozen=True)
class Measured:
    """difficulty, p_true: float32 [N] in [0, 1], difficulty = 1 - p_true = the mean over the models of 1 - p_k(label).
    predicted: int32 [N], the class with the largest mean probability. probs: float32 [N, C], mean over the models.

    NaN, and predicted -1, where a model's answer is not finite; NaN difficulty and p_true where the label is -1.
    """

    difficulty: np.ndarray
    p_true: np.ndarray
    predicted: np.ndarray
    probs: np.ndarray


@dataclass(frozen=True)
class Scorer:
    """models: K networks that share one preprocessing and one temperature. Class i is class_names[i]. extractor: what
    all of them stand on, None where each is a network of its own."""

    models: tuple[nn.Module, ...]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    temperature: float
    device: torch.device
    extractor: Extractor | None = None

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Scorer:
        """Raises NotFoundError when there is no scorer, MismatchError when its files do not fit each other."""
        if not (folder / DESCRIPTION).is_file():
            raise NotFoundError(f"no scorer in {folder}", "make it first: dcdm score", file=folder)
        said, device = read_document(folder / DESCRIPTION, _ScorerDescription, AGAIN), torch.device(device)
        if said.heads is not None and said.features is not None:
            models, extractor = _load_heads(folder, said.heads, said.features, len(said.class_names), device)
            return cls(models, said.class_names, extractor.preprocessing, said.temperature, device, extractor)
        models, preprocessing = _load_models(folder, said, device)
        return cls(models, said.class_names, preprocessing, said.temperature, device)

    def measure(
        self,
        images: Images,
        labels: np.ndarray,
        *,
        only: np.ndarray | None = None,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> Measured:
        """images: files, PIL images or a uint8 array [N, H, W, 3]. labels: int [N] in [-1, C). only: int [N, M], the
        models that are asked about each image, where not all may be (`unseen_models`). Raises NumericalError when of
        `SOME` images or more not one gets a finite answer."""
        logits = logits_of(self.models, images, self.preprocessing, self.device, batch_size, progress)
        if only is not None:
            logits = np.take_along_axis(logits, only.T[:, :, None], axis=0)
        return self._measured(logits, labels)

    @torch.inference_mode()
    def measure_features(self, features: np.ndarray, labels: np.ndarray) -> Measured:
        """`measure` for images whose features, float32 [N, D] of the scorer's extractor, are known."""
        seen = torch.from_numpy(features).to(self.device)
        heads = [cast(OnTrunk, model).head for model in self.models]
        return self._measured(np.stack([head(seen).float().cpu().numpy() for head in heads]), labels)

    def _measured(self, logits: np.ndarray, labels: np.ndarray) -> Measured:
        """logits float32 [K, N, C]"""
        mean = mean_log_probs(logits, self.temperature)
        columns = score_columns(mean, labels)
        measured = {name: columns[name] for name in ("difficulty", "p_true", "predicted")}
        if len(mean) >= SOME and not np.isfinite(mean).all(axis=1).any():
            raise NumericalError(
                f"the scorer gives no finite answer for any of {len(mean)} images", "make it again: dcdm score --force"
            )
        return Measured(**measured, probs=np.exp(mean).astype(np.float32))

    def verdicts(self, images: np.ndarray, labels: np.ndarray) -> Verdict:
        """images uint8 [B, H, W, 3], labels int [B]. What choosing among generated images asks for."""
        measured = self.measure(images, labels)
        # without the label's own: a rival is another class
        others = np.where(np.arange(len(self.class_names)) == np.asarray(labels)[:, None], 0, measured.probs)
        return Verdict(measured.difficulty, measured.predicted, others.max(axis=1))


def save_scorer(folder: Path, fitted: CrossFit, class_names: Sequence[str], config: ClassifierConfig) -> None:
    """Writes `folder` as a whole: one folder per fold model, and the description."""
    with atomic_folder(folder) as part:
        for fold, model in enumerate(fitted.models):
            save_classifier(model, part / f"fold-{fold}", class_names, config, fitted.temperature)
        _describe(part, class_names, fitted.temperature, folds=len(fitted.models))


def save_feature_scorer(
    folder: Path, models: Sequence[OnTrunk], class_names: Sequence[str], temperature: float, extractor: Extractor
) -> None:
    """Writes `folder` as a whole: the heads in one file, and the network below them unless it is the packaged one.

    models: on this extractor's network.
    """
    heads = nn.ModuleList([model.head for model in models])
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.state_dict().items()}
    about = {"name": extractor.name, "size": extractor.size, "width": extractor.width, "key": extractor.key}
    with atomic_folder(folder) as part:
        save_file(state, part / WEIGHTS, {"class_names": json.dumps(list(class_names))})
        if extractor.name != PACKAGED:
            save_extractor(extractor, part / EXTRACTOR)
        _describe(part, class_names, temperature, heads=len(models), features=about)


def save_own_scorer(folder: Path, own: OwnClassifier, temperature: float) -> None:
    """Writes `folder` as a whole: a copy of the user's classifier with its sidecar, and the description."""
    with atomic_folder(folder) as part:
        _describe(part, own.class_names, temperature, own=copy_own_classifier(own, part))


def _describe(folder: Path, class_names: Sequence[str], temperature: float, **members: Any) -> None:
    write_json(folder / DESCRIPTION, {**members, "class_names": list(class_names), "temperature": temperature})


@dataclass(frozen=True)
class _Features:
    """The network below the heads. name: as it was asked for; size: pixels per side; key: of its weights."""

    name: Word
    size: Annotated[int, Field(ge=8, le=4096)]
    key: Word


@dataclass(frozen=True)
class _ScorerDescription:
    """scorer.json. own: name of the user's classifier beside it; heads: how many stand on `features`; otherwise `folds`
    fold models."""

    class_names: ClassNames
    temperature: Temperature
    own: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)] | None = None
    folds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    heads: Annotated[int, Field(ge=1, le=10_000)] | None = None
    features: _Features | None = None


def _load_models(
    folder: Path, said: _ScorerDescription, device: torch.device
) -> tuple[tuple[nn.Module, ...], Preprocessing]:
    file = folder / DESCRIPTION
    if said.own is not None:
        # the name comes from a file, which may have come with a folder from elsewhere
        copy = inside(folder, said.own, said_in=file, again=AGAIN)
        own = load_own_classifier(copy, said.class_names, _NO_SETTINGS, device)
        return (own.model,), own.preprocessing
    if said.folds is None:
        raise MismatchError(f"{file} is damaged: it names neither `own`, `heads` nor `folds`", AGAIN, file=file)
    stored = [load_classifier(folder / f"fold-{fold}", device) for fold in range(said.folds)]
    # means are taken over the models, class by class
    if any(one.class_names != said.class_names for one in stored):
        raise MismatchError(f"the fold models in {folder} have other classes", AGAIN, file=file)
    return tuple(one.model for one in stored), preprocessing_of(stored[0].model, stored[0].config)


def _load_heads(
    folder: Path, count: int, about: _Features, classes: int, device: torch.device
) -> tuple[tuple[nn.Module, ...], Extractor]:
    source = PACKAGED if about.name == PACKAGED else str(folder / EXTRACTOR)
    extractor = open_extractor(source, about.size, device)
    # heads are of these very features; by name alone another version of the network would pass
    if extractor.key != about.key:
        raise MismatchError(
            f"the scorer in {folder} was fitted on features of another version of {about.name}", AGAIN, file=folder
        )
    heads = nn.ModuleList([nn.Linear(extractor.width, classes) for _ in range(count)])
    load_weights(heads, folder / WEIGHTS)
    heads = heads.to(device).eval().requires_grad_(False)
    models = tuple(OnTrunk(extractor.network, cast(nn.Linear, head)) for head in heads)
    return models, extractor
