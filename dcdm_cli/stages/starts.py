"""Real images that generated ones start from (`generate.strength` below 1): which they are, and their latents.

Not from the paper, which does not say what its images start from. The baseline that it is compared with, Real-Fake
(Yuan et al. 2024, arXiv 2310.10402), runs Stable Diffusion as img2img at strength 0.75 (its published code).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.errors import NotFoundError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session

if TYPE_CHECKING:
    import numpy as np

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.generation.starts import Starts
    from dcdm_cli.model.adapter import AdapterInfo


def source_images(session: Session, train: Manifest) -> Manifest:
    """The training images that fine-tuning learns from, and whose latents it has cached."""
    from dcdm_cli.training.dataset import usable_rows

    return usable_rows(train, session.config.finetune.keep_suspects)


def source_ids(session: Session, train: Manifest) -> list[list[str]] | None:
    """Sample ids of each class's source images; None where images start from noise."""
    if session.config.generate.strength == 1:
        return None
    images = source_images(session, train)
    ids: list[list[str]] = [[] for _ in train.class_names]
    for label, sample in zip(images.column("label").tolist(), images.column("sample_id").tolist(), strict=True):
        ids[label].append(sample)
    return ids


def open_starts(session: Session, adapter: Path, job: Job) -> Starts | None:
    """Latents of all source images for the base of an adapter: those that fine-tuning has cached, or encoded once here.

    None where images start from noise. Raises NotFoundError for an image that is not cached and cannot be read.
    """
    if session.config.generate.strength == 1:
        return None
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.generation.starts import Starts
    from dcdm_cli.model.adapter import read_adapter
    from dcdm_cli.training.dataset import cached_originals

    info = read_adapter(adapter)
    images = source_images(session, read_manifest(session.run.samples).split("train"))
    ids: list[str] = images.column("sample_id").tolist()
    # found by sample ids: where they are kept, the images need not be there any more
    latents = cached_originals(ids, info.base_fingerprint, info.resolution, session.run.cache)
    if latents is None:
        session.console.note(f"encoding {len(ids)} real images to start from (once; they are kept in cache/)")
        latents = _encoded(session, info, images, ids, job)
    return Starts({sample: row for row, sample in enumerate(ids)}, latents)


def _encoded(session: Session, info: AdapterInfo, images: Manifest, ids: list[str], job: Job) -> np.ndarray:
    from dcdm_cli.model.base import load_base
    from dcdm_cli.training.dataset import cache_latents
    from dcdm_cli.training.views import Views

    # encoding takes the VAE alone; a hollow base has no fingerprint of its own
    base = load_base(info.base, **info.place, device=job.device, hollow=("unet",))
    base = replace(base, fingerprint=info.base_fingerprint)  # of all its weights, as fine-tuning has seen it
    report = job.stoppable("nothing was generated")
    try:
        return cache_latents(base, Views(images.paths()), info.resolution, session.run.cache, report, ids)
    except NotFoundError as error:
        strength = session.config.generate.strength
        raise NotFoundError(
            f"an image to start from (generate.strength = {strength:g}) has no cached latents and cannot be read: "
            f"{error.message}",
            "put it back, score the images that are left (dcdm score, then dcdm finetune), or start from noise: "
            "--strength 1",
            file=error.file,
        ) from error
