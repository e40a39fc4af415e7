"""Frozen features: what a network that was trained on other images sees in ours. Not from the paper.

The packaged network is EfficientNet-Lite0, trained on ImageNet (`lite0/origin.json`). Any timm model with published
weights can take its place: by name, from a folder in timm's layout (config.json, model.safetensors), or from a
.safetensors file with a sidecar. A feature is the pooled activation before the classifier, rounded to half precision,
so that what was kept and what is computed again agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dcdm_cli.difficulty.classifier import (
    WEIGHTS,
    Preprocessing,
    build_classifier,
    last_layers,
    load_weights,
)
from dcdm_cli.difficulty.own_classifier import read_sidecar
from dcdm_cli.difficulty.packaged import FOLDER, PACKAGED
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.files import atomic_folder, hash_bytes, hash_json, write_json
from dcdm_cli.gate import read_document
from dcdm_cli.run.settings import ClassifierConfig

VERSION = 1  # of what is computed; features of another one are not found again
DESCRIPTION = "config.json"
CONVENTION = ("mean", "std")
KNOWN = ("mean", "std", "interpolation", "input_size")
OTHERWISE = "take the packaged network: features = packaged"


class Penultimate(nn.Module):
    """A timm classifier without its last layer: float [B, 3, H, W] -> float [B, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        timm_model = cast(Any, model)
        # MobileNetV3 and its like widen the last feature map in their head
        self.model, self.num_classes = model, getattr(timm_model, "head_hidden_size", timm_model.num_features)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        model = cast(Any, self.model)
        return model.forward_head(model.forward_features(pixels), pre_logits=True).flatten(1)


class Frozen(nn.Module):
    """`Penultimate` rounded to what half precision holds: float32 [B, D], without gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.penultimate = Penultimate(model).eval().requires_grad_(False)
        self.num_classes = self.penultimate.num_classes

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.penultimate(pixels).half().float()


@dataclass(frozen=True)
class Extractor:
    """network: image float [B, 3, H, W], standardised -> float32 [B, width]. name: as it was asked for.
    key: of weights and preprocessing; equal keys give equal features."""

    network: Frozen
    preprocessing: Preprocessing
    name: str
    architecture: str
    model_args: Mapping[str, Any]
    width: int
    key: str
    device: torch.device

    @property
    def size(self) -> int:
        """Pixels per side that images are brought to."""
        return int(self.preprocessing.data_config["input_size"][-1])

    def __str__(self) -> str:
        name = self.name if self.name == self.architecture else f"{self.name} ({self.architecture})"
        return f"{name}, {self.size} px"


@dataclass(frozen=True)
class _Source:
    """Where a network comes from. weights: None = timm's hub. convention: of its inputs, as timm calls the keys."""

    name: str
    architecture: str
    model_args: Mapping[str, Any]
    weights: Path | None
    convention: Mapping[str, Any]


def open_extractor(features: str, size: int | None = None, device: torch.device | str = "cpu") -> Extractor:
    """features: `packaged`, a timm name, a folder in timm's layout or a .safetensors file with a sidecar. size: pixels
    per side, None = the network's own.

    Raises UsageError for a name that means nothing, NotFoundError for weights that are not there, MismatchError for
    weights of another architecture, unknown preprocessing, or a size that the network cannot read.
    """
    source = _source(features)
    network = _built(source, size)
    unknown = [key for key in CONVENTION if not source.convention.get(key, _own(network, source).get(key))]
    if unknown:
        raise MismatchError(
            f"how {source.name} expects its pixels is not known: {' and '.join(unknown)} are missing",
            f'write "mean" and "std", three numbers each for pixels in 0 to 1, into {_said_in(source)}',
        )
    known = {key: value for key, value in source.convention.items() if key in KNOWN and value}
    _check_convention(known, source)
    side = size or (known.get("input_size") or _own(network, source).get("input_size") or (3, 224, 224))[-1]
    # the whole square, as `preprocessing_of` has it for trained classifiers
    sized = {**known, "input_size": (3, side, side), "crop_pct": 1.0}
    preprocessing = Preprocessing.of(network, **{k: tuple(v) if isinstance(v, list) else v for k, v in sized.items()})
    frozen, device = Frozen(network).eval(), torch.device(device)
    # while it is on the CPU, whose bytes make the key
    width, key = _width(frozen, side, source), _key(network, preprocessing)
    frozen = frozen.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Extractor(frozen, preprocessing, source.name, source.architecture, source.model_args, width, key, device)


def save_extractor(extractor: Extractor, folder: Path) -> None:
    """In timm's layout, as a whole; `open_extractor` gives it back with the same key."""
    kept = {key: extractor.preprocessing.data_config[key] for key in KNOWN}
    document = {"architecture": extractor.architecture, "num_classes": 0, "model_args": dict(extractor.model_args)}
    state = extractor.network.penultimate.model.state_dict()
    with atomic_folder(folder) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, part / WEIGHTS)
        write_json(part / DESCRIPTION, {**document, "pretrained_cfg": kept})


def _source(features: str) -> _Source:
    if features == PACKAGED:
        return _folder(FOLDER, PACKAGED)
    # before paths: of a network and a folder that share a name, the network is meant
    if timm.is_model(features):
        return _Source(features, features, {}, None, {})
    path = Path(features).expanduser()
    if path.is_dir():
        return _folder(path, str(path))
    if path.suffix == ".safetensors":
        return _file(path)
    if path.exists() or len(path.parts) > 1:
        raise NotFoundError(
            f"{features} is neither a folder with {DESCRIPTION} and {WEIGHTS} nor a .safetensors file",
            f"check the path, or {OTHERWISE}",
            file=path,
        )
    build_classifier(ClassifierConfig(model=features), 0)  # names the nearest ones
    raise UsageError(f"timm has no model {features!r}", OTHERWISE)


def _folder(folder: Path, name: str) -> _Source:
    """timm's config.json; older ones have everything at the top."""
    document = read_document(folder / DESCRIPTION, dict[str, Any], OTHERWISE)
    if not isinstance(document.get("architecture"), str):
        raise MismatchError(
            f"{folder / DESCRIPTION} names no architecture", f"it is timm's file; or {OTHERWISE}", file=folder
        )
    convention = document.get("pretrained_cfg") or document
    return _Source(name, document["architecture"], document.get("model_args") or {}, folder / WEIGHTS, convention)


def _file(file: Path) -> _Source:
    if not file.is_file():
        raise NotFoundError(f"no weights at {file}", f"check the path, or {OTHERWISE}", file=file)
    sidecar = read_sidecar(file, {})
    if sidecar.model is None:
        raise MismatchError(
            f"{file} does not say which network its weights are of",
            f'write {{"model": timm\'s name, "mean": [...], "std": [...]}} to {file.stem}.json beside it',
            file=file,
        )
    return _Source(str(file), sidecar.model, sidecar.model_args or {}, file, sidecar.overrides())


def _built(source: _Source, size: int | None) -> nn.Module:
    """In eval mode, on the CPU."""
    how = {"model": source.architecture, "model_args": dict(source.model_args), "pretrained": source.weights is None}
    try:
        # as large as it is published: `resize` would bring it to the default size of a classifier's settings
        network = build_classifier(ClassifierConfig.model_validate(how), 0, resize=False)
    except NotFoundError as error:
        raise NotFoundError(
            error.message,
            f"go online once so that they reach the hub's cache, name a folder that has them, or {OTHERWISE}",
        ) from error
    if source.weights is not None:
        # a whole classifier's file has a last layer, which features end before
        load_weights(network, source.weights, without=last_layers(network))
    if size and hasattr(network, "set_input_size"):  # transformers are built for one image size
        try:
            cast(Any, network).set_input_size(img_size=size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _unreadable(source, size, error) from error
    return network.eval()


def _own(network: nn.Module, source: _Source) -> Mapping[str, Any]:
    """What timm knows of published weights; of a file's, it would be a guess."""
    return getattr(network, "pretrained_cfg", {}) if source.weights is None else {}


def _check_convention(known: Mapping[str, Any], source: _Source) -> None:
    """Raises MismatchError for a mean or std that no pixel can be standardised with."""
    for key in CONVENTION:
        given = known.get(key, (0.5, 0.5, 0.5))
        numbers = isinstance(given, (list, tuple)) and all(isinstance(one, (int, float)) for one in given)
        if not numbers or len(given) != 3 or not all(math.isfinite(one) for one in given) or _is_zero(key, given):
            raise MismatchError(
                f'"{key}" of {source.name} is {given!r}: three finite numbers, one per colour, are wanted'
                + (", above 0" if key == "std" else ""),
                f"correct it in {_said_in(source)}",
            )


def _is_zero(key: str, given: Sequence[float]) -> bool:
    return key == "std" and min(given) <= 0


def _said_in(source: _Source) -> str:
    if source.weights is None:
        return f"the sidecar of a file with the weights, or {OTHERWISE}"
    if source.weights.name == WEIGHTS and source.weights.with_name(DESCRIPTION).is_file():
        return f"pretrained_cfg of {source.weights.with_name(DESCRIPTION)}"
    return str(source.weights.with_suffix(".json"))


@torch.inference_mode()
def _width(frozen: Frozen, side: int, source: _Source) -> int:
    """One black image: a wrong size shows here, not after an hour of decoding."""
    try:
        return int(frozen(torch.zeros(1, 3, side, side)).shape[1])
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unreadable(source, side, error) from error


def _unreadable(source: _Source, side: int, error: Exception) -> MismatchError:
    return MismatchError(
        f"{source.name} cannot read images of {side} px: {error}",
        "leave out feature_size, or set one that it can read, such as a multiple of its patches",
    )


def _key(network: nn.Module, preprocessing: Preprocessing) -> str:
    tensors = sorted(network.state_dict().items())
    # float: NumPy has no bfloat16
    parts = [part for name, value in tensors for part in (name.encode(), value.float().contiguous().numpy().tobytes())]
    return hash_bytes(hash_json([VERSION, dict(preprocessing.data_config)]).encode(), *parts)
