"""A user's own classifier: a timm model in a .safetensors file, or any network in an .onnx file (not from the paper).

Class names come with the file and are aligned by name with the manifest; index order is never trusted. Pickles are
refused. What the file does not say itself stands in a sidecar, `<stem>.json` beside it: see `ClassifierDescription`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import nn

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.onnx_weights import external_data
from dcdm_cli.difficulty.classifier import (
    AGAIN,
    Preprocessing,
    build_classifier,
    load_weights,
    logits_of,
)
from dcdm_cli.difficulty.own_files import classifier_file, timm_description
from dcdm_cli.difficulty.scores import Scores, score_all
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.files import write_json
from dcdm_cli.gate import ClassNames, parse_json, read_document, typed
from dcdm_cli.run.progress import Progress
from dcdm_cli.run.settings import ClassifierConfig
from dcdm_cli.section import Section
from dcdm_export import places

SOFTMAX_SLACK = 5e-3  # of half precision, in a sum of probabilities
SHOWN = 10  # class names listed in an error
NAMES_BESIDE = 'write {"class_names": [...]}, in the order of the outputs, to <its stem>.json beside it'


class ClassifierDescription(Section):
    """What a classifier file cannot say itself. Left out: `model` from the settings, the rest from the model.

    class_names: in the order of the outputs. image_size: pixels per side. mean, std: of pixels in 0..1.
    """

    class_names: tuple[str, ...] | None = None
    model: str | None = Field(None, description="timm name, for .safetensors")
    model_args: dict[str, Any] | None = None
    image_size: int | None = Field(None, ge=8)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = Field(None, gt=0, le=1)
    interpolation: str | None = Field(None, pattern="^(nearest|bilinear|bicubic|lanczos)$")

    def overrides(self) -> dict[str, Any]:
        """What differs from the model's own preprocessing, as timm calls it."""
        given = self.model_dump(include={"mean", "std", "crop_pct", "interpolation"}, exclude_none=True)
        return given | ({"input_size": (3, self.image_size, self.image_size)} if self.image_size else {})


@dataclass(frozen=True)
class OwnClassifier:
    """model: image -> logits [B, C] in the order of class_names: the manifest's classes first, then any others.

    file, sidecar: what it takes to load it again. gives_probabilities: its file ends in a softmax, whose logarithm is
    taken.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    file: Path
    sidecar: ClassifierDescription
    gives_probabilities: bool = False


def load_own_classifier(
    file: Path,
    class_names: Sequence[str],
    config: ClassifierConfig,
    device: torch.device | str = "cpu",
    *,
    class_map: Sequence[str] | None = None,
) -> OwnClassifier:
    """class_names: the manifest's. config: gives `model` and `model_args` of a .safetensors file without sidecar.
    class_map: names in output order, where neither the file's metadata nor its sidecar has them.

    file: may be a folder as timm writes it for the hub. A network that gives probabilities is recognised, and asked for
    their logarithm: a softmax over probabilities would make every image equally hard.

    Raises NotFoundError, UsageError for a file that cannot be a classifier, MismatchError for other weights or classes.
    """
    file = classifier_file(file)
    openers = {".safetensors": _open_safetensors, ".onnx": _open_onnx}
    if file.suffix.lower() not in openers:
        raise UsageError(
            f"{file.name}: a classifier is a .safetensors or an .onnx file; a pickle can run code when it is opened",
            "convert it: safetensors.torch.save_file(model.state_dict(), 'classifier.safetensors')",
            file=file,
        )
    sidecar = read_sidecar(file, {"model": config.model, "model_args": config.model_args})
    model, names = openers[file.suffix.lower()](file, sidecar, class_map)
    model.eval()
    preprocessing = Preprocessing.of(model, **sidecar.overrides())
    gives_probabilities = _are_probabilities(_try_out(model, preprocessing, len(names), file))
    if gives_probabilities:
        model = _Logarithm(model)
    order = align_classes(names, class_names)
    aligned = Reordered(model, order).to(device)
    # wherever the names came from: the copy in the run folder has to say all itself
    sidecar = sidecar.model_copy(update={"class_names": names})
    return OwnClassifier(aligned, tuple(names[i] for i in order), preprocessing, file, sidecar, gives_probabilities)


def score_with(
    own: OwnClassifier,
    manifest: Manifest,
    device: torch.device | str,
    *,
    calibrate: bool,
    progress: Progress | None = None,
) -> Scores:
    """Scores every row. They are as honest as the classifier is new to these images; there is no `fold` column."""
    logits = logits_of([own.model], manifest.paths(), own.preprocessing, device, progress=progress)[0]
    return score_all(logits, manifest.column("label"), calibrate=calibrate)


def copy_own_classifier(own: OwnClassifier, folder: Path) -> str:
    """Copies the file, the weights that an ONNX graph keeps beside itself, and a full sidecar into `folder`; returns
    the copy's name. Raises UsageError for weights that the copy could not find again."""
    copy = folder / f"own{own.file.suffix.lower()}"
    shutil.copyfile(own.file, copy)
    for name in external_data(own.file):
        target = places.inside(folder, name)
        # weights of that name would take the place of the graph that was just copied
        if target.exists():
            raise UsageError(f"{own.file.name} calls its weights {name}", "export it under another name", file=own.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(places.inside(own.file.parent, name), target)  # the graph refers to it by this name
    write_json(copy.with_suffix(".json"), own.sidecar.model_dump(mode="json", exclude_none=True))
    return copy.name


def align_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Positions in `theirs` of every name in `ours`, then of the remaining ones.

    Raises MismatchError when a name of `ours` is missing or a name of `theirs` occurs twice.
    """
    position = {name: index for index, name in enumerate(theirs)}
    if len(position) < len(theirs):
        raise MismatchError(f"the classifier names a class twice: {_first(sorted(theirs))}", "make its names unique")
    missing = [name for name in ours if name not in position]
    others = [name for name in theirs if name not in set(ours)]
    if missing:
        raise MismatchError(
            f"the classifier lacks {len(missing)} of the {len(ours)} classes of the images: {_first(missing)}; "
            f"it has {len(others)} others: {_first(others)}",
            "use the same names on both sides; a classifier's names come from its metadata or its sidecar",
        )
    return [position[name] for name in (*ours, *others)]


class Reordered(nn.Module):
    """Logits in another class order."""

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model, self.num_classes = model, len(order)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)[:, self.order]


class _Logarithm(nn.Module):
    """Logits of a network that gives probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        probs = self.model(images).float()
        # a probability of 0 is an answer, and an infinite logit would count as none
        return probs.clamp(min=torch.finfo(torch.float32).tiny).log()


class _OnnxNetwork(nn.Module):
    """An ONNX Runtime session on the CPU as a torch module. pretrained_cfg: where timm looks for the input size."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session, self._input = session, session.get_inputs()[0]
        batch, _, *size = self._input.shape
        fixed = all(isinstance(side, int) for side in size)
        self.pretrained_cfg = {"input_size": (3, *size)} if fixed else {}
        # exported without a free batch dimension
        self._one_by_one = batch == 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        parts = images.cpu().contiguous().split(1 if self._one_by_one else len(images))
        logits = [self._session.run(None, {self._input.name: part.numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(logits)).to(images.device)


def _open_safetensors(
    file: Path, sidecar: ClassifierDescription, class_map: Sequence[str] | None
) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        with safe_open(file, "pt") as stream:
            metadata = stream.metadata() or {}
    except SafetensorError as error:
        raise MismatchError(f"{file} is not a whole safetensors file: {error}", AGAIN, file=file) from error
    names = _names(file, metadata, sidecar, class_map)
    architecture = sidecar.model_dump(include={"model", "model_args"}, exclude_none=True)
    model = build_classifier(ClassifierConfig.model_validate(architecture), len(names), resize=False)
    load_weights(model, file)
    return model, names


def _open_onnx(
    file: Path, sidecar: ClassifierDescription, class_map: Sequence[str] | None
) -> tuple[nn.Module, tuple[str, ...]]:
    session = _session(file)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shapes = [len(node.shape) for node in inputs], [len(node.shape) for node in outputs]
    if shapes != ([4], [2]) or inputs[0].type != "tensor(float)":
        raise UsageError(
            f"{file.name} has inputs {[(i.type, i.shape) for i in inputs]} and outputs {[o.shape for o in outputs]}",
            "a classifier has one float32 input, tensor(float), [batch, 3, height, width] and one output "
            "[batch, classes]; export it in float32, without the conversion of pixels",
            file=file,
        )
    return _OnnxNetwork(session), _names(file, session.get_modelmeta().custom_metadata_map, sidecar, class_map)


@torch.inference_mode()
def _try_out(model: nn.Module, preprocessing: Preprocessing, classes: int, file: Path) -> torch.Tensor:
    """The answers [4, C] to black and to noise: a wrong input size or number of outputs shows here, not after an hour
    of decoding."""
    size = tuple(preprocessing.data_config["input_size"])
    noise = torch.randn(3, *size, generator=torch.Generator().manual_seed(0)) * 2
    try:
        answers = torch.cat([model(torch.zeros(1, *size)), *(model(one[None]) for one in noise)])
        width = answers.shape[1]
    except Exception as error:  # whatever the runtime raises
        raise MismatchError(
            f"{file.name} cannot read an image of shape {size}: {error}",
            "set image_size in the sidecar, or export it with a free batch dimension",
            file=file,
        ) from error
    if width != classes:
        raise MismatchError(f"{file.name} has {width} outputs but names {classes} classes", NAMES_BESIDE, file=file)
    return answers.float()


def _are_probabilities(answers: torch.Tensor) -> bool:
    """Whether the answers [N, C] are the outputs of a softmax, of any precision."""
    sums = answers.sum(dim=1)
    return answers.shape[1] > 1 and bool((answers >= 0).all() and ((sums - 1).abs() < SOFTMAX_SLACK).all())


def _session(file: Path) -> Any:
    import onnxruntime  # only few runs need it

    try:
        return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception types have no common base but this one
        raise MismatchError(f"onnxruntime cannot open {file}: {error}", AGAIN, file=file) from error


def _names(
    file: Path, metadata: Mapping[str, str], sidecar: ClassifierDescription, class_map: Sequence[str] | None
) -> tuple[str, ...]:
    """Class names in the order of the outputs."""
    try:
        stored = parse_json(metadata.get("class_names", "null"))
        names = (typed(cast(Any, ClassNames), stored) if stored else None) or sidecar.class_names or class_map
    except ValueError as error:
        raise UsageError(
            f"{file.name}: the metadata key class_names is no JSON list of names: {error}", NAMES_BESIDE, file=file
        ) from error
    if not names:
        raise UsageError(
            f"{file.name} does not name its classes",
            NAMES_BESIDE.replace("<its stem>", file.stem),
            file=file,
        )
    return tuple(names)


def read_sidecar(file: Path, architecture: Mapping[str, Any]) -> ClassifierDescription:
    """Of the file's own sidecar and, where there is none, of what timm has written beside the weights. architecture:
    `model` and `model_args`, where neither names one.

    Raises UsageError for an unknown key or a value that breaks a rule.
    """
    path = file.with_suffix(".json")
    given = read_document(path, dict[str, Any], AGAIN) if path.is_file() else timm_description(file)
    # model_args of the settings belong to the settings' model, not to the one that the sidecar names
    ours = {} if "model" in given else architecture
    try:
        return typed(ClassifierDescription, {**ours, **given})
    except ValueError as error:
        raise UsageError(
            f"{path.name}: {error}", f"known: {', '.join(ClassifierDescription.model_fields)}", file=path
        ) from error


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
