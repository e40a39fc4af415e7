"""Opening a generation worker: everything a process on any machine needs to hold the model."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcdm_cli.config import GenerateConfig
from dcdm_cli.data.images import DecodeOptions, set_decode_options
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.generation.bulk import EngineMaker
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.generation.shards import Measure
from dcdm_cli.generation.workers import ShardWorker


@dataclass(frozen=True)
class Parcel:
    """A folder's files by name, for machines that do not share a disk."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Parcel:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})

    def unpack(self) -> Path:
        """A temporary folder that lives as long as the process."""
        folder = Path(tempfile.mkdtemp(prefix="dcdm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass(frozen=True)
class Setup:
    """adapter, scorer: folders; scorer None = images are not measured. threads: CPU threads of one worker.

    deliver: images are sent to the boss; then the folders may be parcels. The base model is found where it is named, on
    every machine.
    """

    adapter: Path | Parcel
    config: GenerateConfig
    scorer: Path | Parcel | None
    decode: DecodeOptions
    threads: int | None = None
    deliver: bool = False


def open_shard_worker(setup: Setup, device: str, should_stop: Callable[[], bool]) -> ShardWorker:
    """A partial of this with `setup` is what a crew's transport takes."""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    set_decode_options(setup.decode)
    engine = open_engine(_here(setup.adapter), setup.config, device)
    measure = measure_with(_here(setup.scorer), device) if setup.scorer else None
    return ShardWorker(EngineMaker(engine, measure), should_stop, deliver=setup.deliver)


def measure_with(scorer: Path, device: str) -> Measure:
    """Finished images measured by a stored scorer."""
    loaded = Scorer.load(scorer, device)

    def measure(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        measured = loaded.measure(images, labels)
        return measured.difficulty, measured.predicted

    return measure


def _here(folder: Path | Parcel) -> Path:
    return folder.unpack() if isinstance(folder, Parcel) else folder
