"""What training reads: cached latents and text encodings, and the random draws of every step.

Everything random in step n comes from (seed, n) for the whole global batch at once; each process takes its share. So a
resumed run, and a run on more devices with the same global batch, see the same images, noise and timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dcdm_cli.data.archives import file_stamp
from dcdm_cli.data.images import decode_options
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.shown import refuse_others
from dcdm_cli.errors import MismatchError, NotFoundError, NumericalError, UsageError
from dcdm_cli.files import atomic_path, check_room, hash_json, write_json
from dcdm_cli.gate import read_document
from dcdm_cli.model.base import BaseModel, encode_text
from dcdm_cli.model.latents import encode_latents, to_pixels
from dcdm_cli.run.progress import Progress
from dcdm_cli.run.seals import change_beside, seal_beside
from dcdm_cli.training.views import Views

CHUNK, CHUNK_PIXELS = 32, 2**20  # encoded at once, at most: an encoder's activations are gigabytes at 512 px
BINS = 10  # of difficulty, for balancing


@dataclass(frozen=True)
class TrainingSet:
    """Of N views: latents float32 [N, 4, h, w], caption (a row of text) int64 [N], label int64 [N], difficulty float32
    [N]; text [captions, T, D] with the empty prompt last. epoch int64 [M]: the views of one epoch, some of them several
    times (`balanced_epoch`)."""

    latents: np.ndarray
    text: np.ndarray
    caption: Tensor
    label: Tensor
    difficulty: Tensor
    epoch: Tensor

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Draws:
    """Everything random about one global batch, on the CPU."""

    image: Tensor  # int64 [B], a view
    timestep: Tensor  # int64 [B]
    noise: Tensor  # float32 [B, 4, h, w]
    drop_text: Tensor  # bool [B]
    drop_difficulty: Tensor  # bool [B]
    difficulty: Tensor  # float32 [B], the images' own unless any is drawn


@dataclass(frozen=True)
class DrawSettings:
    seed: int
    batch: int
    timesteps: int
    text_dropout: float
    difficulty_dropout: float
    any_difficulty: bool = False  # one of [0, 1] instead of the image's own


def draw(data: TrainingSet, settings: DrawSettings, step: int) -> Draws:
    """The draws of one optimiser step. Images come from a permutation of `data.epoch` at a time."""
    generator = torch.Generator().manual_seed(_step_seed(settings.seed, step))
    size, shape = settings.batch, tuple(data.latents.shape[1:])
    # the order of draws is part of what a seed means: new ones go last
    drop_text = torch.rand(size, generator=generator) < settings.text_dropout
    image = _epoch_rows(data.epoch, settings, step)
    return Draws(
        image=image,
        timestep=torch.randint(settings.timesteps, (size,), generator=generator),
        noise=torch.randn((size, *shape), generator=generator),
        drop_text=drop_text,
        # guidance's unconditional call has neither text nor difficulty; text without difficulty it has
        drop_difficulty=drop_text | (torch.rand(size, generator=generator) < settings.difficulty_dropout),
        difficulty=torch.rand(size, generator=generator) if settings.any_difficulty else data.difficulty[image],
    )


def balanced_epoch(difficulty: Tensor, power: float) -> Tensor:
    """Rows of one epoch, int64 [M >= N]: images of rare difficulty come several times.

    Not from the paper. Most real images are easy, so that uniform draws teach little about the hard end. An image of a
    tenth of the difficulty range that holds n images comes round((largest n / n) ** power) times; power 0 = each once.
    """
    tenth = (difficulty * BINS).long().clamp(0, BINS - 1)  # a difficulty of 1 is of the last tenth
    counts = torch.bincount(tenth, minlength=BINS)
    times = (counts.max() / counts[tenth]).pow(power).round().long()
    return torch.arange(len(difficulty)).repeat_interleave(times)


def cache_latents(
    base: BaseModel,
    views: Views,
    resolution: int,
    folder: Path,
    progress: Progress,
    ids: Sequence[str] | None = None,
) -> np.ndarray:
    """Memory-mapped latents [len(views), 4, h, w], encoded once, reused while images, VAE and file are the same.

    ids: sample ids of the images, by which `cached_originals` finds their latents again without the images. Raises
    MismatchError for an image that shows something else than the one that was scored under its id.
    """
    stamps = [_stamp(path) for path in views.paths]
    made_from = [stamps, views.mirror, views.jittered, views.seed, resolution, base.fingerprint]
    # the same files look otherwise with another `fit` or `reduce_to`, and so do their latents
    made_from.append(asdict(decode_options()))
    file = folder / f"latents-{hash_json(made_from)}.npy"
    if change_beside(file):
        _encode(base, views, resolution, file, progress, ids or ())
        seal_beside(file)
    if ids is not None:
        write_json(_originals_file(ids, base.fingerprint, resolution, folder), {"latents": file.name})
    return np.load(file, mmap_mode="r")


def _encode(base: BaseModel, views: Views, resolution: int, file: Path, progress: Progress, ids: Sequence[str]) -> None:
    side = resolution // base.latent_size
    channels = base.vae.config["latent_channels"]
    check_room(file.parent, 4 * len(views) * channels * side**2, f"the latents of {len(views)} pictures")
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(views), channels, side, side)}
    # Written from front to back: writing to a memory map ends the process when the disk is full.
    with atomic_path(file) as part, part.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        chunk = max(1, min(CHUNK, CHUNK_PIXELS // resolution**2))  # of images beyond a million pixels one at a time
        for start in range(0, len(views), chunk):
            pictures = views[start : start + chunk]
            # the originals come first, and ids are of them alone: views that follow have nothing to be compared with
            refuse_others(pictures, ids[start : start + chunk], views.paths[start : start + chunk])
            latents = encode_latents(base.vae, to_pixels(pictures, resolution)).cpu().numpy()
            refuse_not_finite(latents, start)
            stream.write(latents.tobytes())
            progress("encoding images", min(start + chunk, len(views)), len(views))


@dataclass(frozen=True)
class _Originals:
    """originals-<hash>.json: which file begins with the latents of the images that the hash stands for."""

    latents: Annotated[str, Field(pattern=r"^latents-[0-9a-f]{1,64}\.npy$")]


def cached_originals(ids: Sequence[str], fingerprint: str, resolution: int, folder: Path) -> np.ndarray | None:
    """Memory-mapped latents [len(ids), 4, h, w] of the images as they are, or None where `cache_latents` has not made
    them with these ids. fingerprint: of the base. Raises MismatchError for a damaged cache."""
    note = _originals_file(ids, fingerprint, resolution, folder)
    if not note.is_file():
        return None
    again = f"remove {folder} and run it again: the images are encoded once more"
    file = folder / read_document(note, _Originals, again).latents
    if change_beside(file):
        return None
    try:
        latents = np.load(file, mmap_mode="r")
        # more rows than ids: mirrored and jittered views follow
        if latents.ndim != 4 or latents.dtype != np.float32 or len(latents) < len(ids):
            raise ValueError(f"it holds {latents.dtype} {list(latents.shape)}")
    except (ValueError, OSError, EOFError) as error:
        raise MismatchError(f"{file} holds no latents of {len(ids)} images: {error}", again, file=file) from error
    return latents[: len(ids)]


def _originals_file(ids: Sequence[str], fingerprint: str, resolution: int, folder: Path) -> Path:
    """Sample ids are hashes of what is in the images."""
    return folder / f"originals-{hash_json([list(ids), fingerprint, resolution, asdict(decode_options())])}.json"


def refuse_not_finite(latents: np.ndarray, first: int) -> None:
    """latents: float [N, 4, h, w] of views `first` and on. Raises NumericalError that names the first bad one."""
    bad = np.flatnonzero(~np.isfinite(latents).reshape(len(latents), -1).all(axis=1))
    if len(bad):
        raise NumericalError(
            f"the latents of training image {first + int(bad[0])} are not finite ({len(bad)} of {len(latents)} here): "
            "the VAE overflowed, or what was cached is damaged",
            "use --precision fp32, or remove cache/ in the run folder and run it again",
        )


def encode_captions(base: BaseModel, captions: Sequence[str], progress: Progress) -> tuple[np.ndarray, Tensor]:
    """Text encodings of the distinct captions, the empty prompt last, and each image's row in them."""
    distinct = [*dict.fromkeys(captions), ""]
    rows = {caption: i for i, caption in enumerate(distinct)}
    encoded = []
    for start in range(0, len(distinct), 64):
        encoded.append(encode_text(base, distinct[start : start + 64]).float().cpu().numpy())
        progress("encoding captions", min(start + 64, len(distinct)), len(distinct))
    return np.concatenate(encoded), torch.tensor([rows[c] for c in captions])


def _stamp(path: Path) -> tuple[str, int, int]:
    """Raises NotFoundError."""
    try:
        return file_stamp(path)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", "the images have changed: dcdm score", file=path) from error


def _epoch_rows(images: Tensor, settings: DrawSettings, step: int) -> Tensor:
    count = len(images)
    positions = torch.arange(step * settings.batch, (step + 1) * settings.batch)
    rows = torch.empty_like(positions)
    # one batch may reach over the end of an epoch, or of several where images are few
    for epoch in (positions // count).unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_step_seed(settings.seed, ~epoch)))
        here = positions // count == epoch
        rows[here] = images[order[positions[here] % count]]
    return rows


def _step_seed(seed: int, step: int) -> int:
    """Epochs use negative step numbers, so that their permutations are independent of the steps' draws."""
    stream = (seed, 0, step) if step >= 0 else (seed, 1, ~step)
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_rows(manifest: Manifest, keep_suspects: bool) -> Manifest:
    """Scored, captioned training images, without likely mislabels. Raises UsageError when too little is left."""
    train = manifest.split("train")
    if train.table["caption"].null_count:
        raise NotFoundError("some training images have no caption", "write them: dcdm caption --force")
    chosen = usable_rows(train, keep_suspects)
    counts = chosen.class_counts()
    if (counts > 0).sum() < 2:
        raise UsageError(
            "difficulty needs at least two classes with images", "add a second class folder and run dcdm score again"
        )
    if (counts == 0).any():
        names = [n for n, c in zip(manifest.class_names, counts, strict=True) if c == 0]
        raise UsageError(
            f"no usable training image in class {names[0]!r} ({len(names)} such classes)",
            "add images or remove the class folder, then run dcdm score again; --keep-suspects keeps doubtful labels",
        )
    return chosen


def usable_rows(train: Manifest, keep_suspects: bool) -> Manifest:
    """The training images that have a difficulty, without likely mislabels unless they are to be kept."""
    # NaN where a fold did not know the class, or gave no finite answer
    keep = np.isfinite(train.column("difficulty"))
    return train.select(keep if keep_suspects else keep & ~train.column("suspect_label"))
