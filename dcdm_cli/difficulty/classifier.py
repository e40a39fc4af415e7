"""timm classifiers: built, trained, asked and stored.

In: images (files, PIL images or one uint8 array) and labels. Out: a network in eval mode, and its logits. The scorer's
folds, the judge and the downstream classifiers are all made here; which images each may see is decided elsewhere. The
training recipe is not from the paper.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import timm
import torch
from PIL import Image
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, InterpolationMode, RandomRotation

from dcdm_cli.data.images import DecodeOptions, RejectedImage, as_square, decode_image, decode_options
from dcdm_cli.data.manifest import ImagePaths, from_the_end
from dcdm_cli.difficulty.fitting import Keep, SeededBatches, Training, batch_rows, fit, seeded
from dcdm_cli.difficulty.packaged import ARCHITECTURE, FOLDER, PACKAGED
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.files import atomic_folder, hash_file, hash_json, write_json
from dcdm_cli.gate import ClassNames, Digest, read_document
from dcdm_cli.run.finite import refuse_not_finite_weights
from dcdm_cli.run.network import from_hub, reason
from dcdm_cli.run.progress import Progress
from dcdm_cli.run.settings import ClassifierConfig

Images = Sequence[Path | Image.Image] | np.ndarray  # an array is uint8 [N, H, W, 3]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Transform = Callable[[Image.Image], torch.Tensor]

KEEP_BYTES = 2**30  # decoded images are kept in memory up to this
TINY_SIDE = 64  # up to this many pixels per side, starting worker processes costs more than reading
MANY = 8192  # images, unless there are so many
WEIGHTS, DESCRIPTION = "model.safetensors", "classifier.json"
WRAPPERS = ("module.", "_orig_mod.")
AGAIN = "copy or write the file again; what a run has made itself comes back with: dcdm score --force"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    data_config: timm's dict with input_size (3, H, W), mean, std, interpolation, crop_pct, crop_mode.
    """

    data_config: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, **overrides: Any) -> Preprocessing:
        """The convention of a timm model (ImageNet's for any other), with single keys replaced."""
        return cls(resolve_data_config(overrides, model=model))

    def eval_transform(self) -> Transform:
        """PIL image -> uint8 [3, H, W], nothing random."""
        return _transform(**self.data_config)

    def train_transform(self, config: ClassifierConfig) -> Transform:
        """Rotation, random crop, flip and the policy. Uses the global generators, as timm and torchvision do.

        Raises UsageError for a policy that timm does not know.
        """
        # nothing is standardised here, but timm's policies fill what they uncover with the mean
        keys = {key: self.data_config[key] for key in ("input_size", "interpolation", "mean", "std")}
        how = {"scale": config.scale, "hflip": config.hflip, "color_jitter": None, "auto_augment": config.policy}
        try:
            crop = _transform(**keys, **how, is_training=True)
        except (AssertionError, KeyError, ValueError) as error:
            raise UsageError(f"timm has no augmentation policy {config.policy!r}", "rand-m7-mstd0.5-inc1") from error
        return Compose([RandomRotation(config.rotate, InterpolationMode.BILINEAR), crop]) if config.rotate else crop

    def standardise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> float32 with the classifier's mean and std; per batch, on the device: cheaper there."""
        mean, std = (
            torch.tensor(self.data_config[key], device=pixels.device).view(3, 1, 1) * 255 for key in ("mean", "std")
        )
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


class LabelledImages(Dataset[tuple[torch.Tensor, int]]):
    """Items (transform(image), label). keep: decode once and hold the pixels, where they should fit in `KEEP_BYTES`,
    with a call of `watch` before each."""

    def __init__(
        self,
        images: Images,
        labels: np.ndarray | None,
        transform: Transform,
        *,
        max_side: int | None = None,
        keep: bool = False,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """labels: int [N], None = all -1. max_side: images whose shorter side is twice this or more are reduced."""
        self._images = images
        self._labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
        # the options of this process: helpers that read images may have only the defaults
        self._transform, self._max_side, self._options = transform, max_side, decode_options()
        # by the first image's size: to look at all would be to decode all
        if keep and len(images) * _bytes(self.image(0)) <= KEEP_BYTES:
            self._images = [self._watched(watch, i) for i in range(len(images))]

    @property
    def is_array(self) -> bool:
        return isinstance(self._images, np.ndarray)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self.image(index)), int(self._labels[index])

    def _watched(self, watch: Callable[[], None], index: int) -> Image.Image:
        watch()
        return self.image(index)

    def image(self, index: int) -> Image.Image:
        """The RGB image before the transform; another image never takes its place. Raises UsageError for a bad file."""
        source = self._images[index]
        if isinstance(source, Path):
            image = decoded(source, self._options)
        else:
            image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        image = as_square(image, self._options)
        factor = min(image.size) // self._max_side if self._max_side else 1
        return image.reduce(factor) if factor > 1 else image


def build_classifier(config: ClassifierConfig, classes: int, *, resize: bool = True) -> nn.Module:
    """A timm model with `classes` outputs, for `config.image_size` pixels or, without `resize`, the model's own size.

    Raises UsageError for an unknown name or wrong model_args, NotFoundError when pretrained weights cannot be had.
    """
    packaged = config.model == PACKAGED
    name = ARCHITECTURE if packaged else config.model
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise UsageError(f"timm has no model {name!r}", f"nearest: {', '.join(close) or 'none'}")
    # the packaged weights lie here: no hub is asked, not even whether it answers
    published = config.pretrained and not packaged
    try:
        with from_hub("") if published else nullcontext():
            model = timm.create_model(name, pretrained=published, num_classes=classes, **_tuples(config.model_args))
        if packaged and config.pretrained:
            # its last layer would be of ImageNet's classes
            load_weights(model, FOLDER / WEIGHTS, without=last_layers(model))
        if config.pretrained:
            _silence(model)
        if resize and hasattr(model, "set_input_size"):  # transformers are built for one image size
            cast(Any, model).set_input_size(img_size=config.image_size)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"timm cannot build {config.model!r} with {config.model_args}: {error}", "change model_args or image_size"
        ) from error
    except (OSError, RuntimeError) as error:
        raise NotFoundError(
            f"no pretrained weights for {config.model!r}: {reason(error)}",
            "go online once so that they reach the cache, or set pretrained = false",
        ) from error
    return model


def _silence(model: nn.Module) -> None:
    """The last layer at zero: a random one would stay for hundreds of steps, and bend the weights below it that are
    worth keeping, before it means anything (not from the paper)."""
    layers = dict(model.named_modules())  # model_args may have left one out
    for parameter in (p for name in last_layers(model) if name in layers for p in layers[name].parameters()):
        nn.init.zeros_(parameter)


def last_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of a timm model's own classifier layers, none where it does not say."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


class OnTrunk(nn.Module):
    """A classifier whose trunk, image [B, 3, H, W] -> features [B, D], is one object that others have too; the head
    gives logits [B, C] for features. Asked together, such classifiers share the pass through the trunk."""

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.head, self.num_classes = trunk, head, head.out_features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(pixels))


def shared_trunk(models: Sequence[nn.Module]) -> tuple[nn.Module, Sequence[nn.Module]]:
    """What all models ask of an image first, and what each of them asks of the answer."""
    # by identity: equal weights in two objects would still be two passes
    trunks = {id(model.trunk) if isinstance(model, OnTrunk) else None for model in models}
    if None in trunks or len(trunks) > 1:
        return nn.Identity(), models
    asked = [cast(OnTrunk, model) for model in models]
    return asked[0].trunk, [model.head for model in asked]


def train_classifier(
    images: Images,
    labels: np.ndarray,
    classes: int,
    config: ClassifierConfig,
    seed: int,
    device: torch.device | str,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> nn.Module:
    """A classifier trained for exactly `config.steps` optimiser steps, in eval mode on `device`.

    labels: int [N] in [0, classes). The same seed gives the same weights on a CPU, whatever the order of the files and
    the state of the global generators, which are left as they were, and however often it was stopped. keep: asked
    after every step whether to stop; the same call then goes on. Raises UsageError for fewer than two images or labels
    that do not fit, NumericalError when loss or weights are not finite, InterruptedRunError when asked to stop.
    """
    labels, device = np.asarray(labels), torch.device(device)
    if len(images) < 2:
        raise UsageError(
            f"a classifier needs at least 2 training images, there are {len(images)}",
            "add images to the source and read it again: dcdm score SOURCE",
        )
    if len(labels) != len(images) or not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"{len(images)} images need as many labels in 0..{classes - 1}", "read the source again: dcdm score --force"
        )
    images, labels = _in_stable_order(images, labels)
    # of the sorted labels: the same files in another order go on from the same checkpoint
    settings = hash_json([config.model_dump(mode="json"), classes, seed, labels.tolist()])
    # around the building too: the first weights are drawn as well
    with seeded(seed, device):
        model = _placed(build_classifier(config, classes), device)
        preprocessing = preprocessing_of(model, config)
        # 2: a random crop is a part of the image, enlarged
        transform, side = preprocessing.train_transform(config), 2 * config.image_size
        dataset = LabelledImages(images, labels, transform, max_side=side, keep=True, watch=_watch(keep))
        rows = batch_rows(len(images), config.batch_size, config.steps, seed)
        batches = SeededBatches(dataset, rows, seed)

        def batches_from(step: int) -> DataLoader[Any]:
            return _loader(
                batches, device, config.image_size, rows.size, batch_size=None, sampler=range(step, len(rows))
            )

        fit(model, preprocessing.standardise, batches_from, Training(config, seed, settings, progress, keep))
    return model.eval()


def _watch(keep: Keep | None) -> Callable[[], None]:
    """Reading many images takes minutes, in which nothing is there to be saved yet."""
    return (lambda: keep.job.stop_if_asked("this classifier has not begun")) if keep else lambda: None


def predict_logits(
    model: nn.Module,
    images: Images,
    config: ClassifierConfig,
    device: torch.device | str,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> np.ndarray:
    """float32 [N, C] of a model made by `train_classifier` or `load_classifier`, in the order of the images."""
    return logits_of([model], images, preprocessing_of(model, config), device, batch_size, progress)[0]


@torch.inference_mode()
def logits_of(
    models: Sequence[nn.Module],
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device | str,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> np.ndarray:
    """float32 [K, N, C]: K models that share one preprocessing; every image is read once."""
    device = torch.device(device)
    if not len(images):
        return np.zeros((len(models), 0, int(models[0].num_classes)), np.float32)  # pyright: ignore[reportArgumentType]
    dataset = LabelledImages(images, None, preprocessing.eval_transform())
    side = max(preprocessing.data_config["input_size"])
    trunk, heads = shared_trunk(models)
    batches = []
    for pixels, _ in _loader(dataset, device, side, len(images), batch_size=batch_size):
        seen = trunk(preprocessing.standardise(pixels.to(device, non_blocking=True)))
        batches.append(torch.stack([head(seen).float() for head in heads]).cpu())
        if progress:
            progress("classifying", min(len(batches) * batch_size, len(images)), len(images))
    return torch.cat(batches, dim=1).numpy()


@torch.inference_mode()
def chosen_logits(
    models: Sequence[nn.Module],
    chosen: np.ndarray,
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device | str,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> np.ndarray:
    """float32 [R, N, C]: in round r, image i is asked of models[chosen[r, i]]; every image is read once.

    chosen: int [R, N]. Models share one preprocessing.
    """
    device = torch.device(device)
    classes, done = int(models[0].num_classes), 0  # pyright: ignore[reportArgumentType]
    logits = np.zeros((*chosen.shape, classes), np.float32)
    if not len(images):
        return logits
    dataset = LabelledImages(images, None, preprocessing.eval_transform())
    side = max(preprocessing.data_config["input_size"])
    trunk, heads = shared_trunk(models)
    for pixels, _ in _loader(dataset, device, side, len(images), batch_size=batch_size):
        seen = trunk(preprocessing.standardise(pixels.to(device, non_blocking=True)))
        here = slice(done, done + len(seen))
        for asked, answers in zip(chosen[:, here], logits[:, here], strict=True):
            for number in np.unique(asked):
                rows = np.flatnonzero(asked == number)
                answers[rows] = heads[number](seen[torch.from_numpy(rows).to(device)]).float().cpu().numpy()
        done = here.stop
        if progress:
            progress("classifying", min(done, len(images)), len(images))
    return logits


def preprocessing_of(model: nn.Module, config: ClassifierConfig) -> Preprocessing:
    """The whole square (`data.images.as_square`) at `config.image_size`: timm would cut off an eighth, and the rim may
    be what is hard."""
    size = (3, config.image_size, config.image_size)
    return Preprocessing.of(model, input_size=size, crop_pct=1.0, interpolation="bicubic")


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier read back: class i of the model is class_names[i]; logits / temperature are calibrated."""

    model: nn.Module
    class_names: tuple[str, ...]
    config: ClassifierConfig
    temperature: float


def save_classifier(
    model: nn.Module,
    folder: Path,
    class_names: Sequence[str],
    config: ClassifierConfig,
    temperature: float = 1.0,
) -> None:
    """Writes `folder` as a whole: weights as safetensors, and a JSON that says how to build and read the network."""
    # a scorer's or a judge's settings have more keys, which would be refused as unknown when this is read
    settings = config.model_dump(mode="json", include=set(ClassifierConfig.model_fields))
    document = {"config": settings, "class_names": list(class_names), "temperature": temperature}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"architecture": config.model, "class_names": json.dumps(list(class_names))}
    with atomic_folder(folder) as part:
        save_file(state, part / WEIGHTS, metadata)
        write_json(part / DESCRIPTION, {**document, "sha256": hash_file(part / WEIGHTS)})


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> StoredClassifier:
    """Reads what `save_classifier` wrote, in eval mode on `device`.

    Raises NotFoundError when a file is missing, MismatchError when description and weights do not fit each other or the
    weights are not those that were written.
    """
    said, weights = read_document(folder / DESCRIPTION, _ClassifierFile, AGAIN), folder / WEIGHTS
    # published weights would be fetched only to be written over
    config = said.config.model_copy(update={"pretrained": False})
    model = build_classifier(config, len(said.class_names))
    load_weights(model, weights)
    if said.sha256 is not None and hash_file(weights) != said.sha256:  # they fit, and some are others
        raise MismatchError(f"{weights} is damaged: it has other content than it had", AGAIN, file=weights)
    return StoredClassifier(_placed(model.eval(), device), said.class_names, config, said.temperature)


@dataclass(frozen=True)
class _ClassifierFile:
    """What `save_classifier` writes beside the weights."""

    config: ClassifierConfig
    class_names: ClassNames
    temperature: Temperature
    sha256: Digest | None = None  # of the weights; files from before it was kept have none


def load_weights(model: nn.Module, path: Path, without: Sequence[str] = ()) -> None:
    """Strict: every tensor of the model, of its shape, and nothing else. without: layers that stay as they are.

    Raises NotFoundError without a file, MismatchError with the first differences, NumericalError for NaN weights.
    """
    if not path.is_file():
        raise NotFoundError(f"no weights at {path}", AGAIN, file=path)
    try:
        state = _unwrapped(load_file(path))
    except SafetensorError as error:
        raise MismatchError(f"{path} is not a whole safetensors file: {error}", AGAIN, file=path) from error
    wanted, skipped = model.state_dict(), tuple(f"{name}." for name in without)
    state = {key: value for key, value in state.items() if not key.startswith(skipped)}
    # the model's own stand in for them, so that all that follows may be strict
    state |= {key: value for key, value in wanted.items() if key.startswith(skipped)}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted.keys() & state.keys()
        if state[k].shape != wanted[k].shape
    ]
    faults = {"missing": missing, "unexpected": extra, "of another shape": sorted(shapes)}
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:10])}" for kind, keys in faults.items() if keys)
        raise MismatchError(
            f"{path} does not fit the model: {listed}", "name the architecture the weights were made with", file=path
        )
    refuse_not_finite_weights(state, path, "train it again; what a run has made comes back with: dcdm score --force")
    model.load_state_dict(state)


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what DataParallel and torch.compile put before every name."""
    while wrapper := next((one for one in WRAPPERS if state and all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(wrapper): tensor for key, tensor in state.items()}
    return state


def _loader(dataset: Dataset[Any], device: torch.device, side: int, reads: int, **how: Any) -> DataLoader[Any]:
    """reads: images that it will give. Own generator: a DataLoader draws its workers' seed, which must neither read nor
    move the global generator."""
    worth_starting = (side > TINY_SIDE or reads > MANY) and not getattr(dataset, "is_array", False)
    # On a CPU they would compete with the network; threads are this process's share of the machine. An array, such as a
    # batch that was just generated, has nothing to be read or decoded: starting processes would be most of the time.
    workers = min(8, torch.get_num_threads()) if device.type != "cpu" and worth_starting else 0
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
        **how,
    )


def _in_stable_order(images: Images, labels: np.ndarray) -> tuple[Images, np.ndarray]:
    """Files sorted by name, so that neither the order of a manifest's rows nor a run folder's place changes what is
    learnt."""
    if isinstance(images, ImagePaths):
        rows = images.sorted_rows(labels)
        return images.take(rows), labels[rows]
    if not all(isinstance(image, Path) for image in images):
        return images, labels
    # the label too: a file may be there twice, under two of them
    order = sorted(range(len(images)), key=lambda i: (from_the_end(str(images[i])), labels[i]))
    return [images[i] for i in order], labels[order]


def decoded(path: Path, options: DecodeOptions | None = None) -> Image.Image:
    """`decode_image` of a file that could be read before. Raises UsageError where it no longer can."""
    try:
        return decode_image(path, options)
    except RejectedImage as error:
        raise UsageError(
            f"{path} can no longer be read: {error}", "read the images again: dcdm score --force", file=path
        ) from error


def _placed(model: nn.Module, device: torch.device | str) -> nn.Module:
    return model.to(device).to(memory_format=torch.channels_last)  # measured: a third faster on a CPU


def _transform(**how: Any) -> Transform:
    # bytes, a quarter of what floats would be on the way to the device, where `standardise` does the rest
    return cast(Transform, create_transform(**how, normalize=False))


def _bytes(image: Image.Image) -> int:
    return image.width * image.height * 4  # Pillow pads RGB to four bytes


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """TOML and JSON have lists where timm expects tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
