"""Two folders of images compared by how they look, whatever they are of: copies, likeness, coverage. No labels are
read, nothing is trained. Not from the paper.

What is near is measured by the reference images themselves: by how far each of them is from its nearest other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.arrays import evenly
from dcdm_cli.data.candidates import Rejection, clean_name, is_text
from dcdm_cli.data.images import RejectedImage, decode_image, image_hash
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.trees import Tree, is_run_folder
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.evaluation.leakage import (
    CLOSE,
    Looks,
    Nearest,
    limit_in,
    look_at,
    nearest,
    nearest_in,
    nearest_other,
    nearest_other_in,
)
from dcdm_cli.files import hash_bytes
from dcdm_cli.run.progress import Job

if TYPE_CHECKING:
    from dcdm_cli.evaluation.features import Space

FEWEST = 2  # reference images: each needs another one
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class ImageSet:
    """Images of a folder as they were looked at. listed: how many image files it has; rows: those that were looked at
    and are images, without labels; looks: of the rows."""

    folder: Path
    listed: int
    rows: Manifest
    looks: Looks
    rejected: tuple[Rejection, ...]

    @property
    def content(self) -> list[str]:
        """Of each row a hash of its pixels."""
        return [str(identity).partition("-")[0] for identity in self.rows.column("sample_id")]

    def document(self) -> dict[str, Any]:
        from dcdm_cli.generation.shards import FLAT_IMAGE

        about = {"path": str(self.folder), "listed": self.listed, "images": len(self.rows)}
        about["blank"] = int((self.looks.spread < FLAT_IMAGE).sum())
        return about | {"rejected": [asdict(one) for one in self.rejected]}


def read_set(folder: Path, most: int, job: Job) -> ImageSet:
    """At most `most` of the folder's images, at any depth, spread evenly over them in the order of their names.

    Raises NotFoundError without such a folder or an image in it, UsageError for what is no folder of images.
    """
    folder = _checked(folder)
    # counted first and listed again below: of the paths of a large folder only those that are read are held
    listed = sum(1 for _ in Tree(folder).images(folder))
    if not listed:
        raise NotFoundError(f"no image files in {folder}", "give the folder that holds them, at any depth", file=folder)
    chosen = set(evenly(listed, most).tolist())
    paths = [path for number, path in enumerate(Tree(folder).images(folder)) if number in chosen]
    seen, rejected = _Seen(), []
    for done, path in enumerate(paths):
        name = path.relative_to(folder).as_posix()
        try:
            seen.add(name, path)
        except RejectedImage as error:
            rejected.append(Rejection(clean_name(name), error.reason, clean_name(error.detail)))
        job.progress(f"reading {clean_name(folder.name)}", done + 1, len(paths))
        job.stop_if_asked("nothing is kept of it")
    if not seen.rows:
        first = rejected[0]
        raise UsageError(
            f"none of the {len(rejected)} images in {folder} can be read: {first.path}: {first.reason}",
            "give a folder of JPEG, PNG, WebP, BMP, GIF or TIFF images",
            file=folder,
        )
    return ImageSet(folder, listed, Manifest.from_rows(seen.rows, (), folder), seen.looks(), tuple(rejected))


def compared_sets(images: ImageSet, against: ImageSet, among: Sequence[Space]) -> dict[str, Any]:
    """The `copies` and `likeness` of `images` against the reference: by thumbnails and in each feature space.

    copies: see `_copies`. likeness: as `fidelity`, and for scale one half of the reference against the other. exact:
    images whose every pixel is that of a reference image. Raises UsageError for fewer than two reference images.
    """
    if len(against.rows) < FEWEST:
        raise UsageError(
            f"{against.folder} has {len(against.rows)} image that can be used, a comparison needs {FEWEST} at least",
            "give a folder of more images: --against FOLDER",
            file=against.folder,
        )
    exact = int(np.isin(images.content, against.content).sum())
    to_reference = nearest(images.looks, against.looks)
    within = nearest_other(images.looks), nearest_other(against.looks)
    copies, likeness = [{"features": THUMBNAILS, **_copies(to_reference, *within)}], []
    for space in among:
        made, real = space.of(images.rows), space.of(against.rows)
        likeness += [{"features": space.name, **row} for row in _likeness(made, real)]
        copies.append({"features": space.name, **_copies_in(made, real)})
    return {"exact": exact, "copies": copies, "likeness": likeness}


def _copies_in(made: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    reference = nearest_other_in(real)
    limit = limit_in(reference)
    return _copies(nearest_in(made, real, limit), nearest_other_in(made, limit), Nearest(*_of(reference), limit))


def _of(found: Nearest) -> tuple[np.ndarray, np.ndarray]:
    return found.row, found.distance


def _copies(to_reference: Nearest, within: Nearest, reference: Nearest) -> dict[str, Any]:
    """near: images that repeat a reference image; twins: images that repeat another of their own set, and
    reference_twins: of the reference. closer: share of images that are nearer to a reference image than all but `CLOSE`
    of the reference images are to their nearest other: well above `CLOSE` they are copies, if not to the pixel."""
    edge = float(np.quantile(reference.distance, CLOSE))
    return {
        "images": len(to_reference.distance),
        "near": int(to_reference.same.sum()),
        "twins": int(within.same.sum()),
        "reference_twins": int(reference.same.sum()),
        "closer": round(float((to_reference.distance < edge).mean()), 4),
        "closer_expected": CLOSE,
        "limit": round(to_reference.limit, 5),
    }


def _likeness(made: np.ndarray, real: np.ndarray) -> Iterator[dict[str, Any]]:
    from dcdm_cli.evaluation.fidelity import fidelity

    yield {"images": "images", **fidelity(made, real)}
    # every other one: in the order of names, halves would be of different classes
    yield {"images": "reference, halves", **fidelity(real[::2], real[1::2])}


class _Seen:
    """Images one after the other; of each, what is kept is its thumbnail."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._looks: list[tuple[np.ndarray, float]] = []

    def add(self, name: str, path: Path) -> None:
        """Raises RejectedImage."""
        # names of files may be any bytes, and a table's texts are UTF-8
        if not is_text(name):
            raise RejectedImage("bad_name", "the name is not UTF-8")
        image = decode_image(path)
        self._looks.append(look_at(image))
        size = {"width": image.width, "height": image.height}
        # as a scan makes them: features that are kept know an image by the first part
        sample = f"{image_hash(image)}-{hash_bytes(name.encode())[:8]}"
        self.rows.append({"sample_id": sample, "path": name, "synthetic": False, **size})

    def looks(self) -> Looks:
        thumbnails, spread = zip(*self._looks, strict=True)
        return Looks(np.stack(thumbnails), np.array(spread, np.float32))


def _checked(folder: Path) -> Path:
    """Raises NotFoundError, UsageError."""
    if not folder.exists():
        raise NotFoundError(f"no such folder: {folder}", "check the path", file=folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "give a folder of image files, at any depth", file=folder)
    if is_run_folder(folder):
        raise UsageError(
            f"{folder} is a run folder, which holds results",
            f"name the images; those that a run has generated are in {folder / 'generated'}",
            file=folder,
        )
    return folder.resolve()
