"""Images that are not new, or not images: near-duplicates of training images (memorisation) and of test images (a
leak), blank ones, and those that lost their label beyond hope. Not from the paper.

Nothing is deleted: findings are counted, and a filter writes lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from dcdm_cli.data.images import RejectedImage, decode_image
from dcdm_cli.errors import NotFoundError
from dcdm_cli.run.progress import Progress, silent

SIDE = 16  # pixels of the thumbnails that are compared
# Root mean square difference of two thumbnails, of the whole range, below which they show the same picture. Copies that
# were resized, mirrored, brightened by 2 % or saved as JPEG stay below 0.026; the nearest of 2,000 CIFAR-10 test images
# to 25,000 training images is at 0.040, of 997 digits to 600 others at 0.049.
NEAR = 0.03
# Share of the typical distance from a held-out real image to the nearest training image below which two images are
# near-duplicates in a feature space, whose scale depends on the images. Measured in the packaged features on CIFAR-10,
# as shares of that distance: mirrored, cropped by a pixel, brightened by 5 % or saved as JPEG, 95 of 100 copies stay
# below 0.28, resized to three quarters and back below 0.63; the nearest of 400 other images is at 0.54. On digits,
# copies are at up to 1.9 and others at 0.44: there only thumbnails tell.
NEAR_SHARE = 0.3
CLOSE = 0.01  # quantile of distances from held-out real images to training images
MEDIUM = 2 / 3  # images up to this difficulty are never taken away for their label
REASONS = ("blank", "near_test", "near_train", "label_lost")


@dataclass(frozen=True)
class Looks:
    """thumbnails: float32 [N, SIDE * SIDE * 3] in [0, 1]. spread: float32 [N], standard deviation in grey levels of the
    most varied colour channel; a constant image has 0."""

    thumbnails: np.ndarray
    spread: np.ndarray


def look(paths: Sequence[Path], progress: Progress = silent) -> Looks:
    """Reads each file once; thumbnails are all that is kept. Raises NotFoundError for one that cannot be read."""
    thumbnails = np.zeros((len(paths), SIDE * SIDE * 3), np.float32)
    spread = np.zeros(len(paths), np.float32)
    for row, path in enumerate(paths):
        try:
            thumbnails[row], spread[row] = look_at(decode_image(path))
        except RejectedImage as error:
            raise NotFoundError(
                f"the image {path} can no longer be read: {error}",
                "dcdm score --force, or dcdm generate --force",
                file=path,
            ) from error
        progress("reading images", row + 1, len(paths))
    return Looks(thumbnails, spread)


def look_at(image: Image.Image) -> tuple[np.ndarray, float]:
    """Thumbnail and spread of an RGB image, as in `Looks`."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    spread = float(np.asarray(image, np.float32).std((0, 1)).max())
    return np.asarray(small, np.float32).ravel() / 255, spread


@dataclass(frozen=True)
class Nearest:
    """For each image the nearest reference: row int64 [N], distance float32 [N] (root mean square, of the range; of
    features: 1 - cosine). limit: the distance below which two show the same picture."""

    row: np.ndarray
    distance: np.ndarray
    limit: float = NEAR

    @property
    def same(self) -> np.ndarray:
        """bool [N]: shows the same picture."""
        return self.distance < self.limit


def nearest(images: Looks, reference: Looks) -> Nearest:
    """By thumbnails; mirrored copies count. Without references every distance is infinite."""
    if not len(reference.thumbnails) or not len(images.thumbnails):
        return Nearest(np.full(len(images.thumbnails), -1), np.full(len(images.thumbnails), np.inf, np.float32))
    # in so many dimensions a tree looks at everything as well, and more slowly
    tree = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(reference.thumbnails)
    found = [tree.kneighbors(view) for view in (images.thumbnails, _mirrored(images.thumbnails))]
    distance = np.concatenate([d for d, _ in found], axis=1) / np.sqrt(images.thumbnails.shape[1])
    row = np.concatenate([r for _, r in found], axis=1)
    better = distance.argmin(1)[:, None]
    return Nearest(
        np.take_along_axis(row, better, 1)[:, 0], np.take_along_axis(distance, better, 1)[:, 0].astype(np.float32)
    )


def nearest_other(images: Looks) -> Nearest:
    """From each image to its nearest other one, mirrored or not, by thumbnails; infinitely far where it is alone."""
    count = len(images.thumbnails)
    if count < 2:
        return Nearest(np.full(count, -1), np.full(count, np.inf, np.float32))
    tree = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(images.thumbnails)
    # asked about nothing in particular, the tree leaves each image itself out
    distance, row = (found[:, 0] for found in tree.kneighbors())
    far, other = tree.kneighbors(_mirrored(images.thumbnails), 2)
    second = (other[:, 0] == np.arange(count)).astype(int)[:, None]  # its own mirror image does not count
    far, other = (np.take_along_axis(found, second, 1)[:, 0] for found in (far, other))
    closest = np.minimum(distance, far) / np.sqrt(images.thumbnails.shape[1])
    return Nearest(np.where(far < distance, other, row), closest.astype(np.float32))


def nearest_other_in(features: np.ndarray, limit: float = 0.0) -> Nearest:
    """`nearest_other` by 1 - cosine of features, float [N, D]."""
    if len(features) < 2:
        return Nearest(np.full(len(features), -1), np.full(len(features), np.inf, np.float32), limit)
    tree = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="cosine").fit(features)
    # without itself, as above
    distance, row = tree.kneighbors()
    return Nearest(row[:, 0], distance[:, 0].astype(np.float32), limit)


def to_own(images: Looks, reference: Looks, rows: np.ndarray) -> Nearest:
    """From each image to the one that it started from, mirrored or not, by thumbnails. rows: int64 [N] of the
    reference, -1 = it started from none, which is infinitely far."""
    distance, known = np.full(len(rows), np.inf, np.float32), np.flatnonzero(rows >= 0)
    if len(known):
        begun, own = reference.thumbnails[rows[known]], images.thumbnails[known]
        misses = [np.square(view - begun).mean(1) for view in (own, _mirrored(own))]
        distance[known] = np.sqrt(np.minimum(*misses))
    return Nearest(rows, distance)


def nearest_in(features: np.ndarray, reference: np.ndarray, limit: float = 0.0) -> Nearest:
    """By 1 - cosine of features, float [N, D] and [M, D] of one space. Without references every distance is infinite.

    limit: of the space and the images, from `limit_in`.
    """
    if not len(reference) or not len(features):
        return Nearest(np.full(len(features), -1), np.full(len(features), np.inf, np.float32), limit)
    tree = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="cosine").fit(reference)
    distance, row = tree.kneighbors(features)
    return Nearest(row[:, 0], distance[:, 0].astype(np.float32), limit)


def limit_in(real: Nearest) -> float:
    """`NEAR_SHARE` of the median distance from held-out real images to training images; 0 without any. Copies among
    those do no harm while they are fewer than half."""
    return NEAR_SHARE * float(np.median(real.distance)) if len(real.distance) else 0.0


def copying(made: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """`leakage` in a feature space, float [N, D] each, with the limit that was used."""
    real = nearest_in(held_out, train)
    limit = limit_in(real)
    # only now has `real` a limit, which is made from it
    found = leakage(nearest_in(made, train, limit), nearest_in(made, held_out, limit), replace(real, limit=limit))
    return {**found, "limit": round(limit, 5)}


def leakage(to_train: Nearest, to_test: Nearest, real: Nearest, to_source: Nearest | None = None) -> dict[str, Any]:
    """to_train, to_test: from generated images; real: from test images to training images, for scale.

    near_train: generated images that repeat a training image. closer_than_real: share of generated images that lie
    closer to a training image than all but `CLOSE` of the real test images do: well above `CLOSE`, it is memorisation.
    near_test: generated images that repeat a test image: level "error", as accuracy on such a test set is inflated.
    real_overlap: test images that repeat a training image, which no generator is to blame for. from_source: images
    that started from a real one; near_source: those that repeat it; both None without `to_source`, which is `to_own`.
    """
    limit = float(np.quantile(real.distance, CLOSE)) if len(real.distance) else 0.0
    copies, leaks = int(to_train.same.sum()), int(to_test.same.sum())
    closer = float((to_train.distance < limit).mean()) if len(to_train.distance) else None
    return {
        "images": len(to_train.distance),
        "near_train": copies,
        "near_test": leaks,
        "real_overlap": int(real.same.sum()),
        "from_source": None if to_source is None else int((to_source.row >= 0).sum()),
        "near_source": None if to_source is None else int(to_source.same.sum()),
        "closer_than_real": None if closer is None else round(closer, 4),
        "closer_expected": CLOSE,
        "level": "error" if leaks else "warning" if copies else "ok",
    }


@dataclass(frozen=True)
class Findings:
    """One entry per generated image, bool [N]: blank, near_test, near_train, agrees (judge and label; None = there is
    no judge); difficulty float [N], NaN = not measured."""

    blank: np.ndarray
    near_test: np.ndarray
    near_train: np.ndarray
    agrees: np.ndarray | None
    difficulty: np.ndarray


def filter_reasons(findings: Findings, frontier: float | None) -> list[str | None]:
    """Why each image should go, or None to keep it.

    An image whose label is lost goes only when it is also harder than `frontier`, the difficulty up to which labels
    hold, and than `MEDIUM`: an image that is merely hard for the judge is what generation is for. None without a judge,
    when no label is known to be lost.
    """
    columns = (findings.blank, findings.near_test, findings.near_train, _lost(findings, frontier))
    rows = zip(*columns, strict=True)
    return [next((reason for reason, found in zip(REASONS, row, strict=True) if found), None) for row in rows]


def _lost(findings: Findings, frontier: float | None) -> np.ndarray:
    """bool [N]"""
    if findings.agrees is None or frontier is None:
        return np.zeros(len(findings.difficulty), bool)
    # what was not measured is not taken away for it
    return ~findings.agrees & (np.nan_to_num(findings.difficulty, nan=0.0) > max(frontier, MEDIUM))


def counted(reasons: Sequence[str | None], findings: Findings) -> dict[str, Any]:
    """Counts for a report, with how many images of each third of the range were kept."""
    kept = np.array([reason is None for reason in reasons])
    counts = Counter(reason for reason in reasons if reason)
    return {
        "images": len(reasons),
        "kept": int(kept.sum()),
        "removed": {reason: counts[reason] for reason in REASONS},
        "by_difficulty": list(_thirds(findings.difficulty, kept)),
    }


def _thirds(difficulty: np.ndarray, kept: np.ndarray) -> Iterator[dict[str, Any]]:
    # 1.01: a difficulty of 1 is hard
    for name, low, high in (("easy", 0, 1 / 3), ("medium", 1 / 3, 2 / 3), ("hard", 2 / 3, 1.01)):
        mine = (difficulty >= low) & (difficulty < high)
        yield {"difficulty": name, "images": int(mine.sum()), "kept": int((mine & kept).sum())}


def _mirrored(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(len(thumbnails), -1)
