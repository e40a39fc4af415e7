"""Features of many images, each computed once and kept: by image, network and size. Not from the paper.

One safetensors file per chunk, so that a million images need memory for one chunk, and a stopped run goes on. Chunks
are independent tasks for workers. Images are known by what they show, not by where they lie: sets that share images
share their features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from dcdm_cli.data.images import image_hash, shown_by
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.classifier import Images, decoded, logits_of
from dcdm_cli.difficulty.features import Extractor, Frozen, open_extractor
from dcdm_cli.errors import MismatchError, NumericalError
from dcdm_cli.files import atomic_path, hash_bytes, write_json
from dcdm_cli.run.progress import Job, Progress
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.messages import OpenWorker, Piece

CHUNK = 512  # images of one file and task
ROWS = 8192  # rows that are held at once where a whole set is gone through
BATCH = 64
DESCRIPTION = "features.json"
OpenPool = Callable[[OpenWorker], AbstractContextManager[WorkerPool]]


@dataclass(frozen=True)
class FeatureTable:
    """Features of N images, on the disk. place: int64 [N, 2], file and row in it. flat: bool [N], images of one colour,
    in which a network sees nothing."""

    files: Sequence[Path]
    place: np.ndarray
    flat: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.place)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float32 [len(rows), width]; each file is opened once."""
        found = np.zeros((len(rows), self.width), np.float32)
        wanted = self.place[rows]
        for number in np.unique(wanted[:, 0]):
            here = np.flatnonzero(wanted[:, 0] == number)
            found[here] = _read(self.files[number], "features")[wanted[here, 1]]
        return found

    def parts(self, rows: int = ROWS) -> Iterator[tuple[slice, np.ndarray]]:
        """(which images, float32 [n, width]) from the first to the last."""
        for start in range(0, len(self), rows):
            here = slice(start, min(start + rows, len(self)))
            yield here, self.take(np.arange(here.start, here.stop))


@dataclass(frozen=True)
class FeatureCache:
    """folder: where features are kept, of any network. pool: opens workers, None = this process.
    threads: CPU threads of a worker."""

    folder: Path
    pool: OpenPool | None = None
    threads: int | None = None

    def of(self, extractor: Extractor, manifest: Manifest, job: Job) -> FeatureTable:
        """Features of every row; only those that are not there yet are computed.

        Raises NumericalError for features that are not finite, UsageError for an image that can no longer be read,
        InterruptedRunError when asked to stop; the same call goes on.
        """
        return self._table(extractor, image_identities(manifest), manifest.image_paths().take, job)

    def of_files(
        self, extractor: Extractor, files: Sequence[Path], job: Job, identities: Sequence[str] | None = None
    ) -> FeatureTable:
        """`of` for image files that no manifest lists. identities: `image_hash` of each; None = each is read for it."""
        identities = identities or [image_hash(decoded(file)) for file in files]
        return self._table(extractor, identities, lambda rows: [files[row] for row in rows], job)

    def _table(
        self,
        extractor: Extractor,
        identities: Iterable[str],
        take: Callable[[np.ndarray], Sequence[Path]],
        job: Job,
    ) -> FeatureTable:
        """take: the files of these rows."""
        # identities are of the pixels in the file; `fit` and `reduce_to` change what a network sees of them
        home = self.folder / "-".join(filter(None, (extractor.key[:16], shown_by())))
        hashes = np.array([_number(identity) for identity in identities], np.uint64)
        # copies of an image are looked at once
        distinct, first = np.unique(hashes, return_index=True)
        known, _, _ = _index(home, extractor, job)
        missing = np.sort(first[~np.isin(distinct, known)])
        if len(missing):
            self._describe(home, extractor, job)
            self._compute(extractor, _Wanted(home, take(missing), hashes[missing]), job)
        known, places, files = _index(home, extractor, job)
        rows = places[np.searchsorted(known, hashes)] if len(hashes) else places
        return FeatureTable(files, rows[:, :2], rows[:, 2] == 1, extractor.width)

    def _compute(self, extractor: Extractor, wanted: _Wanted, job: Job) -> None:
        chunks = [Piece("chunk", number) for number in range(wanted.chunks)]

        def said(chunk: Piece, features: np.ndarray) -> int:
            wanted.keep(chunk.number, features)
            job.progress("looking at images", wanted.done, len(wanted))
            return 1

        if self.pool is None:
            for chunk in chunks:
                # it tells of every batch, the last one of a chunk among them
                report = _shifted(job.stoppable(wanted.saved()), wanted.done, len(wanted))
                wanted.keep(chunk.number, looked_at(extractor, wanted.images(chunk.number), report))
            return
        with self.pool(partial(open_looker, extractor.name, extractor.size, self.threads)) as pool:
            # a worker opens the network by its name, and another machine may have other weights under it
            if pool.first_hello() != extractor.key:
                raise MismatchError(
                    f"a worker has another version of {extractor}", "install one version of it on every machine"
                )
            pool.work(chunks, lambda chunk: wanted.images(chunk.number), said, wanted.saved)

    def _describe(self, home: Path, extractor: Extractor, job: Job) -> None:
        """What is kept here; says so when there are features of other networks only."""
        if (home / DESCRIPTION).is_file():
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            job.note(
                f"features in {self.folder} are of another network, size or version, or of images fitted otherwise: "
                f"computing those of {extractor}"
            )
        document = {"network": str(extractor), "architecture": extractor.architecture, "key": extractor.key}
        write_json(home / DESCRIPTION, document | {"width": extractor.width})


class _Wanted:
    """Images whose features are to be computed, in chunks."""

    def __init__(self, home: Path, paths: Sequence[Path], hashes: np.ndarray) -> None:
        self.home, self.paths, self.hashes, self.done = home, paths, hashes, 0

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def chunks(self) -> int:
        return -(-len(self) // CHUNK)

    def images(self, number: int) -> list[Path]:
        return list(self.paths[number * CHUNK : (number + 1) * CHUNK])

    def keep(self, number: int, features: np.ndarray) -> None:
        """features: as `looked_at` gives them."""
        _write(self.home, self.hashes[number * CHUNK : (number + 1) * CHUNK], features, self.images(number))
        self.done += len(features)

    def saved(self) -> str:
        return f"features of {self.done} of {len(self)} images are kept"


class Looker:
    """An extractor as a pool's worker: gives the features of each list of files."""

    hello: Any

    def __init__(self, extractor: Extractor) -> None:
        self.extractor, self.hello = extractor, extractor.key

    def run(self, task: Sequence[Path]) -> Iterator[np.ndarray]:
        yield looked_at(self.extractor, task)


def open_looker(features: str, size: int, threads: int | None, device: str, should_stop: Callable[[], bool]) -> Looker:
    """A partial of this is what a pool's transport takes. A chunk is short enough to finish."""
    if threads:
        torch.set_num_threads(threads)
    return Looker(open_extractor(features, size, device))


def looked_at(extractor: Extractor, images: Images, progress: Progress | None = None) -> np.ndarray:
    """float32 [N, width + 1]: features, and last how far the pixels of an image reach, 0 for one colour."""
    network = _WithRange(extractor.network).eval()
    return logits_of([network], images, extractor.preprocessing, extractor.device, BATCH, progress)[0]


class _WithRange(nn.Module):
    def __init__(self, network: Frozen) -> None:
        super().__init__()
        self.network, self.num_classes = network, network.num_classes + 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        reach = (pixels.amax((2, 3)) - pixels.amin((2, 3))).amax(1, keepdim=True)
        return torch.cat([self.network(pixels), reach], dim=1)


def image_identities(manifest: Manifest) -> Iterator[str]:
    """Of each row, a name that equal pictures share: the content's part of the sample id, which the scan has made of
    the decoded image. Generated rows have ids of their plan: their files are read."""
    rows = zip(manifest.column("sample_id"), manifest.column("synthetic"), manifest.image_paths(), strict=True)
    for sample_id, synthetic, path in rows:
        content = str(sample_id or "").partition("-")[0]
        yield content if content and not synthetic else image_hash(decoded(path))


def _number(identity: str) -> int:
    """64 bits are enough to tell some millions of images apart."""
    return int(hash_bytes(identity.encode())[:16], 16)


def _write(home: Path, hashes: np.ndarray, features: np.ndarray, paths: Sequence[Path]) -> None:
    # as they are kept: float32 holds what half precision cannot
    broken = np.flatnonzero(~np.isfinite(features.astype(np.float16)).all(axis=1))
    if len(broken):
        raise NumericalError(
            f"the features of {len(broken)} images are not finite, {paths[broken[0]]} is the first",
            "use another network or size: --features NAME, --feature-size PIXELS",
            file=paths[broken[0]],
        )
    kept = {"features": features[:, :-1].astype(np.float16), "flat": (features[:, -1] == 0).astype(np.uint8)}
    # not durable: what a crash loses is computed again
    # named by its images: a chunk that two processes make is one file
    with atomic_path(home / f"{hash_bytes(hashes.tobytes())[:24]}.safetensors", durable=False) as part:
        save_file({**kept, "images": hashes}, part, {"hash": _content({**kept, "images": hashes})})


def _index(home: Path, extractor: Extractor, job: Job) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Sorted numbers of the images uint64 [n], their (file, row, flat) int64 [n, 3], and the files. A file that cannot
    be read is removed: what it held is computed again, and nothing else."""
    files, numbers, places = [], [], []
    for file in sorted(home.glob("*.safetensors")):
        found = _named(file, extractor.width)
        if found is None:
            job.note(f"{file} is damaged: the features it held are computed again")
            file.unlink()
            continue
        images, flat = found
        numbers.append(images)
        places.append(np.stack([np.full(len(images), len(files)), np.arange(len(images)), flat], axis=1))
        files.append(file)
    if not files:
        return np.zeros(0, np.uint64), np.zeros((0, 3), np.int64), []
    known, first = np.unique(np.concatenate(numbers), return_index=True)
    return known, np.concatenate(places)[first].astype(np.int64), files


def _named(file: Path, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(numbers of the images, which are flat) of a whole file; None for a damaged one."""
    try:
        with safe_open(file, "np") as stream:
            images, flat = stream.get_tensor("images"), stream.get_tensor("flat")
            shape = stream.get_slice("features").get_shape()
        # the header alone would not show a bit that has changed in the features
        if not _is_whole(file, file.stat().st_mtime_ns):
            return None
    except (SafetensorError, OSError, ValueError):
        return None
    fits = images.ndim == 1 and images.dtype == np.uint64 and flat.shape == images.shape
    return (images, flat) if fits and list(shape) == [len(images), width] else None


@functools.lru_cache(4096)
def _is_whole(file: Path, changed_ns: int) -> bool:
    """Whether a file still holds what was written into it; asked once per process and version of the file. Files from
    before hashes were kept are believed."""
    with safe_open(file, "np") as stream:
        said = (stream.metadata() or {}).get("hash")
        return said is None or said == _content(
            {name: stream.get_tensor(name) for name in ("features", "flat", "images")}
        )


def _content(tensors: Mapping[str, np.ndarray]) -> str:
    return hash_bytes(*(part for name in sorted(tensors) for part in (name.encode(), tensors[name].tobytes())))


def _read(file: Path, name: str) -> np.ndarray:
    with safe_open(file, "np") as stream:
        return stream.get_tensor(name)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda _, done, __: progress("looking at images", before + done, total)
